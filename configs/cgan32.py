"""The thesis's conditional GAN at 32 x 32 RGB (3.3.1, Keras): a grade in, a photograph of that grade out.

    idrid-jax train --config configs/cgan32.py --workdir runs/cgan32

15 minutes on two cores that others used too. All generated images against all training ones: SSIM 0.389, PSNR 17.4 dB,
where held-out real photographs have 0.476 and 18.1; the thesis shows pictures and no measures for it. Adam(2e-4, b1
0.5) and binary cross-entropy are the thesis's. Each fake takes the grade of a real image of its batch, so that D never
learns from the mixture of grades; `--config.data.sampling=balanced` shows all five as often.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "cgan32"
    config.batch_size = 32  # four times the updates of the usual 128 for the same photographs
    config.total_kimg = 100.0
    return config
