"""The thesis's PyTorch DCGAN (section 3.3.2) with three levels more, 1024 x 1024; unconditional, RGB. Not trained yet.

    idrid-jax train --config configs/dcgan1024.py --workdir runs/dcgan1024

For a GPU or TPU: 720 GFLOP per image and update; 6.2 GiB for two updates at batch 1 on two cores. At 16 images per chip
it needs 93 % of the memory of a TPU v5e; `mesh.rows` and `model.remat` reduce that.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan1024"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    config.optimizer.d_learning_rate = 5e-5  # as dcgan256
    config.loss.label_smoothing = 0.1  # so that D does not win
    config.data.flip = True  # 406 photographs are few
    return config
