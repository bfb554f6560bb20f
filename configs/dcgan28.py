"""The thesis's DCGAN, 28 x 28 grey (section 3.3.2, tf.keras), with the thesis's preprocessing (3.2).

    idrid-jax train --config configs/dcgan28.py --workdir runs/dcgan28

4.5 minutes on two cores. Generated images next to all training photographs: SSIM 0.630, PSNR 22.0 dB; held-out
photographs: 0.655, 22.5 dB; the thesis reports 0.516, 16.4 dB.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan28"
    config.batch_size = 32  # four times the updates of the thesis's 128 for the same images
    config.total_kimg = 60.0  # in longer runs images lose diversity: last panel of curves.png
    config.data.crop = "letterbox"  # the thesis's; its frames are off center, so that flips would add a second layout
    return config
