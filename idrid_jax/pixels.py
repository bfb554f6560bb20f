"""Pixels as they are kept, uint8, and as networks take and draw them, float in [-1, 1]; pure."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 [-1, 1], the range of the generators' tanh."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: jax.Array) -> jax.Array:
    """float [-1, 1] -> uint8, rounded; the inverse of `to_float`."""
    return jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def mirrored(images: jax.Array, which: jax.Array) -> jax.Array:
    """[N, R, R, C] with those mirrored left to right for which bool [N] says so."""
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)
