"""The thesis's PyTorch DCGAN (3.3.2) made deeper, to 1024 x 1024; unconditional, RGB.

    idrid-jax train --config configs/dcgan1024.py --workdir runs/dcgan1024

Eight levels of features from 4 x 4 to 512 x 512; some 720 GFLOP an image and update. Two updates at batch 1 ran on
two cores in 6.2 GiB; not trained. At 16 images a chip it takes 93 % of a TPU v5e's memory; `config.mesh.rows` and
`config.model.remat` take less.
"""

from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "dcgan1024"
    config.batch_size = 16
    config.total_kimg = 100.0
    config.snapshot_kimg = 5.0
    config.optimizer.d_learning_rate = 5e-5
    config.loss.label_smoothing = 0.1
    config.data.flip = True  # 406 photographs are few
    return config
