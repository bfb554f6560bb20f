"""Learning rate x batch for the thesis's DCGAN at 28 x 28: one rate for both networks' Adam, the same number of images.

    python launch/sweep.py configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch

The thesis gives no learning rate for this network, and its batch of 128 makes few updates of 406 photographs.
"""

from idrid_jax.sweep import base


def get_config():
    config = base(__file__, "../dcgan28.py")
    config.total_kimg = 8.0  # enough to tell a rate that is too high from one that is too low; not enough to finish
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
