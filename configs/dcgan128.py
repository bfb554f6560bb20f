"""The thesis's PyTorch DCGAN (section 3.3.2) at the 128 x 128 that its layers give; unconditional, RGB.

    idrid-jax train --config configs/dcgan128.py --workdir runs/dcgan128

25 minutes on two shared cores to 45 kimg. Generated images next to all training photographs: SSIM 0.393, PSNR 17.6 dB;
held-out photographs: 0.588, 18.0 dB. Generated images are less diverse than photographs: mean SSIM of pairs 0.758,
photographs 0.564. The thesis trains for 5 epochs at batch 128 (2 kimg): Loss_D 2.27 -> 0.13, Loss_G 2.36 -> 6.88.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan128"
    config.batch_size = 32  # four times the updates of the thesis's 128 for the same images
    config.total_kimg = 50.0
    config.snapshot_kimg = 5.0
    return config
