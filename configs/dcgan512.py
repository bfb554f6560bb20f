"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 512 x 512; unconditional, RGB.

    idrid-jax train --config configs/dcgan512.py --workdir runs/dcgan512

Seven levels of features from 4 x 4 to 256 x 256; some 170 GFLOP an image and update. Two updates at batch 2 ran on
two cores in 3.5 GiB; not trained. A GPU or TPU is what it is for: `idrid-jax plan --config configs/dcgan512.py ...`.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan512"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    config.optimizer.d_learning_rate = 5e-5
    config.loss.label_smoothing = 0.1
    config.data.flip = True  # 406 photographs are few
    return config
