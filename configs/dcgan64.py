"""The thesis's PyTorch DCGAN (3.3.2) at the 64 x 64 that its text states; unconditional, RGB.

    idrid-jax train --config configs/dcgan64.py --workdir runs/dcgan64

Measured at 32 kimg, 14 minutes on two cores that others used too: SSIM 0.506, PSNR 17.4 dB of all generated images
against all training ones, where held-out real photographs have 0.544 and 18.0; its images are then still more alike
than real ones (0.648 against 0.518). The thesis gives no optimizer for it: Adam(2e-4, b1 0.5) is Radford et al. 2016,
section 4, as everywhere here.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan64"
    config.batch_size = 32
    config.total_kimg = 100.0
    return config
