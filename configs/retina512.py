"""`retina64` at 512 x 512: for a GPU or TPU. Not trained yet; choices are those of 64.

idrid-jax train --config configs/retina512.py --workdir runs/retina512
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "retina512"
    config.batch_size = 16
    config.total_kimg = 500.0
    config.model.max_channels = 512
    config.data.one_side = True  # a left eye's mirror image is a right eye's anatomy
    config.data.sampling = "tempered"  # MILD, of which there are 19, comes as often as its root
    config.data.temperature = 2.0
    config.loss.name = "relativistic"
    config.loss.r1 = -1.0  # auto, as r2
    config.loss.r2 = -1.0
    config.loss.penalty_every = 4
    config.optimizer.b1 = 0.0  # 0.5 was worse
    config.optimizer.b2 = 0.99
    config.ema_kimg = -1.0  # auto
    config.augment.mode = "adaptive"
    config.augment.kimg = 50.0
    config.dtype = "bfloat16"  # a GPU or TPU is what it is for
    config.model.remat = True
    return config
