"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 512 x 512; unconditional, RGB.

    idrid-jax train --config configs/dcgan512.py --workdir runs/dcgan512

NOTE
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan512"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    return config
