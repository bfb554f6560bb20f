"""The thesis's PyTorch DCGAN (section 3.3.2) with two levels more, 512 x 512; unconditional, RGB. Not trained yet.

    idrid-jax train --config configs/dcgan512.py --workdir runs/dcgan512

For a GPU or TPU: 170 GFLOP per image and update; 3.5 GiB for two updates at batch 2 on two cores.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan512"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    config.optimizer.d_learning_rate = 5e-5  # as dcgan256
    config.loss.label_smoothing = 0.1  # so that D does not win
    config.data.flip = True  # 406 photographs are few
    return config
