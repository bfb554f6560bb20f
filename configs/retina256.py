"""`retina64` at 256 x 256: for a GPU or TPU. Its one run, at batch 16, went white; mended since and not run again: see
configs/retina.md.

    idrid-jax train --config configs/retina256.py --workdir runs/retina256
"""

from idrid_jax.sweep import base


def get_config():
    config = base(__file__, "retina64.py")
    config.network = "retina256"
    config.batch_size = 32
    config.model.max_channels = 512
    config.total_kimg = 300.0
    config.optimizer.g_learning_rate = config.optimizer.d_learning_rate = 1e-4  # not tried
    config.dtype = "bfloat16"
    return config
