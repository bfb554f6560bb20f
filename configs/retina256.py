"""`retina64` at 256 x 256: for a GPU or TPU. Not trained yet.

    idrid-jax train --config configs/retina256.py --workdir runs/retina256
"""

from idrid_jax.sweep import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina256"
    config.batch_size = 32
    config.model.max_channels = 512
    config.total_kimg = 300.0
    config.dtype = "bfloat16"
    return config
