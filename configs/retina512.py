"""`retina64.py` at 512 x 512, for a GPU or TPU. Not trained yet.

idrid-jax train --config configs/retina512.py --workdir runs/retina512
"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina512"
    config.batch_size = 16
    config.model.max_channels = 512
    config.model.remat = True  # for memory
    config.total_kimg = 500.0
    config.optimizer.g_learning_rate = config.optimizer.d_learning_rate = 5e-5  # as retina256
    # the falling penalty of retina64 was tried at 64 pixels only
    config.schedule.kimg, config.schedule.penalty_factor = 0.0, 1.0
    config.dtype = "bfloat16"
    return config
