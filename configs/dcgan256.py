"""The thesis's PyTorch DCGAN (section 3.3.2) with one level more, 256 x 256; unconditional, RGB.

    idrid-jax train --config configs/dcgan256.py --workdir runs/dcgan256

42 GFLOP per image and update, 15 times dcgan128's: 4 images/s on two cores, 4,800 on an H100 (batch 32, bfloat16).
There, 60 kimg (13 seconds) give fields of view and discs under a grid, some with two discs and none with vessels.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan256"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 2.0
    config.optimizer.d_learning_rate = 5e-5  # at the generator's 2e-4, D wins within 50 updates (D(G(z)) 0.000)
    config.loss.label_smoothing = 0.1  # so that D does not win
    config.data.flip = True  # 406 photographs are few
    return config
