"""The thesis's PyTorch DCGAN (3.3.2) at the 128 x 128 that its layers give; unconditional, RGB.

    idrid-jax train --config configs/dcgan128.py --workdir runs/dcgan128

Measured at 45 kimg, 25 minutes on two cores that others used too: SSIM 0.393, PSNR 17.6 dB of all generated images
against all training ones, where held-out real photographs have 0.588 and 18.0; its images are then more alike than real
ones (0.758 against 0.564). The thesis trains it for 5 epochs at batch 128 (its Loss_D 2.27 -> 0.13, Loss_G 2.36 ->
6.88), which is 2 kimg; a batch of 32 gives four times the updates for the same photographs.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan128"
    config.batch_size = 32
    config.total_kimg = 50.0
    config.snapshot_kimg = 5.0
    return config
