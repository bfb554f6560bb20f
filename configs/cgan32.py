"""The thesis's conditional GAN, 32 x 32 RGB (section 3.3.1, Keras): grade in, photograph of that grade out.

    idrid-jax train --config configs/cgan32.py --workdir runs/cgan32

15 to 20 minutes on two shared cores. Generated images next to all training photographs: SSIM 0.389, PSNR 17.4 dB;
held-out photographs: 0.476, 18.1 dB. Adam(2e-4, b1 0.5) and binary cross-entropy are the thesis's.
`data.sampling=balanced` samples all grades equally often.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "cgan32"
    config.batch_size = 32  # four times the updates of the thesis's 128 for the same images
    config.total_kimg = 100.0
    return config
