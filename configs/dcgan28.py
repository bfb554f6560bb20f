"""The thesis's DCGAN at 28 x 28 grey (3.3.2, from the tf.keras tutorial), on its own preprocessing (3.2).

    idrid-jax train --config configs/dcgan28.py --workdir runs/dcgan28

4.5 minutes on two cores. All generated images against all training ones: SSIM 0.630, PSNR 22.0 dB, where held-out real
photographs have 0.655 and 22.5, and the thesis reports 0.516 and 16.444. Whole frames with their aspect kept are off
centre, so no flips: a mirrored frame resembles no other.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan28"
    config.batch_size = 32  # four times the updates of the thesis's 128 for the same photographs: README, Results
    config.total_kimg = 60.0  # longer runs grow alike: see the last panel of curves.png
    config.data.crop = "letterbox"
    return config
