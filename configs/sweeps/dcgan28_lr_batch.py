"""Learning rate x batch for the thesis's DCGAN at 28 x 28: one rate for both networks' Adam, the same number of images.

    python launch/sweep.py configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch

The thesis gives no learning rate for this network, and its batch of 128 makes few updates of 406 photographs. Measured
in 16 minutes on two cores that others used too, one seed: at first the number of updates counts most. At batch 16, 500
updates, images have the field's outline, at the higher rates discs too (SSIM 0.51 to 0.65, where held-out photographs
have 0.66); at 32 they are dark (0.12 to 0.24), at 128 a grey grid (0.25 to 0.50: most photographs are nearer to grey).
"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "../dcgan28.py")
    config.total_kimg = 8.0  # the beginning; --config.total_kimg=60 goes on with the same runs
    config.snapshot_kimg = 4.0
    return config


def sweep():
    for learning_rate in (5e-5, 2e-4, 8e-4):
        for batch_size in (16, 32, 128):
            yield {
                "optimizer.g_learning_rate": learning_rate,
                "optimizer.d_learning_rate": learning_rate,
                "batch_size": batch_size,
            }
