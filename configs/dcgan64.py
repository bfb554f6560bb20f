"""The thesis's PyTorch DCGAN (3.3.2) at the 64 x 64 that its text states; unconditional, RGB.

    idrid-jax train --config configs/dcgan64.py --workdir runs/dcgan64

README, Results, has what this configuration reaches, in what time. The thesis gives no optimizer for it: Adam(2e-4, b1
0.5) is Radford et al. 2016, section 4, as everywhere here.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan64"
    config.batch_size = 32
    config.total_kimg = 100.0
    return config
