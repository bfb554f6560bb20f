"""The thesis's DCGAN at 28 x 28 grey (3.3.2, from the tf.keras tutorial), on its own preprocessing (3.2).

    idrid-jax train --config configs/dcgan28.py --workdir runs/dcgan28

The thesis reports SSIM 0.516 and PSNR 16.444 dB for it. README, Results, has what this configuration reaches, in what
time. Whole frames with their aspect kept are off centre, so no flips: a mirrored frame resembles no other.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan28"
    config.batch_size = 32  # four times the updates of the thesis's 128 for the same photographs: README, Results
    config.total_kimg = 60.0  # longer runs grow alike: see the last panel of curves.png
    config.data.crop = "letterbox"
    return config
