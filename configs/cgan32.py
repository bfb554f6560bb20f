from idrid_jax.config import default_config
def get_config():
    c = default_config(); c.network='cgan32'; return c
