from idrid_jax.config import default_config
def get_config():
    c = default_config(); c.network='dcgan28'; c.data.crop='letterbox'; return c
