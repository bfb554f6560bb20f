"""`retina64` at 512 x 512: for a GPU or TPU. Not trained yet.

    idrid-jax train --config configs/retina512.py --workdir runs/retina512

"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina512"
    config.schedule.kimg, config.schedule.penalty_factor = 0.0, 1.0  # a penalty that falls was tried at 64 pixels alone
    config.batch_size = 16
    config.model.max_channels = 512
    config.model.remat = True
    # as retina256; untried, as are R1 and R2 (auto)
    config.optimizer.g_learning_rate = config.optimizer.d_learning_rate = 5e-5
    config.total_kimg = 500.0
    config.dtype = "bfloat16"
    return config
