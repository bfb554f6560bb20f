"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 256 x 256; unconditional, RGB.

    idrid-jax train --config configs/dcgan256.py --workdir runs/dcgan256

A level more for each factor of two (channels 512, 512, 512, 256, 128, 64). Some 42 GFLOP an image and update, 15 times
dcgan128's: 4 images/s on two cores, 4,800 on an H100 (batch 32, bfloat16), where 60 kimg, 13 seconds, show fields,
discs and the eyes' colours under a grid, some with two discs and none with vessels (see README). The discriminator
learns at a quarter of the generator's rate, with smoothed labels: at one rate for both it had won within 50 updates
(D(G(z)) 0.000).
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan256"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 2.0
    config.optimizer.d_learning_rate = 5e-5
    config.loss.label_smoothing = 0.1
    config.data.flip = True  # 406 photographs are few
    return config
