"""What changes while a network trains, as functions of the images shown to D so far; pure."""

import jax
import jax.numpy as jnp

from idrid_jax.models.layers import NUM_GRADES


def cosine(kimg: jax.Array | float, length: float, last: float) -> jax.Array:
    """Half a cosine from 1 down (or up) to `last` over the first `length` kimg, `last` from there on; float32 [].

    Loshchilov and Hutter 2017 ("SGDR"), equation 5, without restarts; of learning rate and penalty alike in Huang et
    al. 2024 (R3GAN). length above 0.
    """
    done = jnp.clip(kimg / length, 0, 1)
    return last + (1 - last) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def ramp(kimg: jax.Array | float, start: float, length: float) -> jax.Array:
    """0 up to `start` kimg, 1 from `start + length` on, a line between; float32 []. length 0: 1 above `start`."""
    return jnp.clip((kimg - start) / max(length, 1e-9), 0, 1).astype(jnp.float32)


def faded(grades: jax.Array, share: jax.Array) -> jax.Array:
    """Grades int32 [B], or their shares float32 [B, 5] -> shares times `share`: what a network hears of them while it
    goes from unconditional (0) to conditional (1). Shahbazi et al. 2022 ("Collapse by conditioning"), equation 3."""
    if jnp.issubdtype(grades.dtype, jnp.integer):
        grades = jax.nn.one_hot(grades, NUM_GRADES, dtype=jnp.float32)
    return share * grades
