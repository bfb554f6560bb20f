"""Learning rate x batch size for the thesis's DCGAN at 28 x 28; both networks have one rate, all runs the same images.

    idrid-jax sweep --config configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch

The thesis names no learning rate, and its batch of 128 gives few updates. 16 minutes on two shared cores, one seed: at
first the number of updates counts most. Batch 16 (500 updates) shows the outline of the field, at higher rates also
discs: SSIM 0.51 to 0.65 (held-out photographs 0.66). Batch 32 is dark (0.12 to 0.24), 128 a grey grid (0.25 to 0.50).
"""

from idrid_jax.config import base


def get_config():
    config = base(__file__, "../dcgan28.py")
    config.total_kimg = 8.0  # the beginning of training; --config.total_kimg=60 resumes the same runs
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
