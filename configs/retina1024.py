"""`retina64.py` at 1024 x 1024, for a GPU or TPU. Not trained yet.

idrid-jax train --config configs/retina1024.py --workdir runs/retina1024
"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina1024"
    config.batch_size = 8
    config.model.max_channels = 512
    config.model.remat = True  # for memory
    config.total_kimg = 500.0
    config.optimizer.g_learning_rate = config.optimizer.d_learning_rate = 5e-5  # as retina256
    # the falling penalty of retina64 was tried at 64 pixels only
    config.schedule.kimg, config.schedule.penalty_factor = 0.0, 1.0
    config.dtype = "bfloat16"
    return config
