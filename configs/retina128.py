"""`retina64.py` at 128 x 128: one level more, with twice the channels. Trained to 60 kimg on an H100 so far.

idrid-jax train --config configs/retina128.py --workdir runs/retina128
"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina128"
    config.batch_size = 16
    config.model.max_channels = 256
    config.total_kimg = 300.0
    # the falling penalty of retina64 was tried at 64 pixels only
    config.schedule.kimg, config.schedule.penalty_factor = 0.0, 1.0
    return config
