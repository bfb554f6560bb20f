"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 256 x 256; unconditional, RGB.

    idrid-jax train --config configs/dcgan256.py --workdir runs/dcgan256

NOTE
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan256"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 2.0
    return config
