from idrid_jax.config import default_config


def get_config():
    config = default_config()
    config.network = "retina64"
    config.batch_size = 32
    config.total_kimg = 300.0
    config.model.max_channels = 256
    config.loss.name = "relativistic"
    config.loss.r1 = -1.0
    config.loss.r2 = -1.0
    config.ema_kimg = -1.0
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    return config
