"""Initialisers as the peers set them (Keras, PyTorch's DCGAN tutorial, He); values are those of `jax.nn.initializers`.

Numbers are drawn in a row and then shaped. XLA takes ten times as long to compile a 4-D draw for a CPU (jaxlib 0.10.2:
2.5 for 0.25 s a kernel), and a network has dozens.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = jax.nn.initializers.Initializer

TRUNCATED = 0.87962566103423978  # standard deviation of N(0, 1) within -2 and 2


def normal(deviation: float, mean: float = 0.0) -> Initializer:
    """N(mean, deviation^2)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        drawn = _in_a_row(jax.random.normal, key, shape, dtype) * jnp.array(deviation, dtype)
        return mean + drawn if mean else drawn

    return init


def variance_scaled(gain: float, *, truncated: bool = False) -> Initializer:
    """N(0, gain^2 / fan in): He et al. 2015 ("Delving deep into rectifiers"), section 2.2; zeros where gain is 0.

    Of kernels [..., I, O]. truncated: at two standard deviations, of the same variance.
    """
    if not gain:
        return nnx.initializers.zeros_init()

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        deviation = jnp.sqrt(jnp.array(gain**2 / math.prod(shape[:-1]), dtype))
        if not truncated:
            return _in_a_row(jax.random.normal, key, shape, dtype) * deviation
        drawn = _in_a_row(lambda *of: jax.random.truncated_normal(of[0], -2, 2, *of[1:]), key, shape, dtype)
        return drawn * (deviation / jnp.array(TRUNCATED, dtype))

    return init


def glorot_uniform(key, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
    """U(-a, a) with a^2 = 6 / (fan in + fan out), of kernels [..., I, O]: Keras's default. Glorot and Bengio 2010,
    equation 16."""
    del out_sharding
    field = math.prod(shape[:-2])
    variance = jnp.array(2 / (field * (shape[-2] + shape[-1])), dtype)
    return _in_a_row(lambda *of: jax.random.uniform(*of, -1), key, shape, dtype) * jnp.sqrt(3 * variance)


def _in_a_row(draw, key, shape, dtype):
    return draw(key, (math.prod(shape),), dtype).reshape(shape)
