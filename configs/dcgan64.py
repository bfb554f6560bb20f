"""The thesis's PyTorch DCGAN (section 3.3.2) at the 64 x 64 that its text states; unconditional, RGB.

    idrid-jax train --config configs/dcgan64.py --workdir runs/dcgan64

14 minutes on two shared cores to 32 kimg. Generated images next to all training photographs: SSIM 0.506, PSNR 17.4 dB;
held-out photographs: 0.544, 18.0 dB. Generated images are less diverse than photographs: mean SSIM of pairs 0.648,
photographs 0.518. The thesis names no optimizer; Adam(2e-4, b1 0.5) is Radford et al. 2016, section 4.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan64"
    config.batch_size = 32  # more updates for the same images
    config.total_kimg = 100.0
    return config
