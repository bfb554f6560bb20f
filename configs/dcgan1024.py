"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 1024 x 1024; unconditional, RGB.

    idrid-jax train --config configs/dcgan1024.py --workdir runs/dcgan1024

NOTE
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan1024"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    return config
