"""Initializers as in Keras, PyTorch's DCGAN tutorial and He et al.; distributions are those of `jax.nn.initializers`.

Numbers are sampled as a vector and then reshaped: for a 4-D shape XLA takes ten times as long to compile on a CPU
(jaxlib 0.10.2: 2.5 s against 0.25 s per kernel), and a network has dozens of kernels.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = jax.nn.initializers.Initializer

TRUNCATED_STD = 0.87962566103423978  # standard deviation of N(0, 1) truncated to [-2, 2]


def normal(std: float, mean: float = 0.0) -> Initializer:
    """Return an initializer that samples from N(mean, std^2)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        sample = _flat_sample(jax.random.normal, key, shape, dtype) * jnp.array(std, dtype)
        return mean + sample if mean else sample

    return init


def variance_scaled(gain: float, *, truncated: bool = False) -> Initializer:
    """Return an initializer for kernels [..., I, O] that samples from N(0, gain^2 / fan-in); zeros if gain is 0.

    `truncated` truncates at two standard deviations and keeps the variance. Source: He et al. 2015, "Delving deep into
    rectifiers", section 2.2.
    """
    if not gain:
        return nnx.initializers.zeros_init()

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        std = jnp.sqrt(jnp.array(gain**2 / math.prod(shape[:-1]), dtype))
        if not truncated:
            return _flat_sample(jax.random.normal, key, shape, dtype) * std
        return _flat_sample(_truncated_normal, key, shape, dtype) * (std / jnp.array(TRUNCATED_STD, dtype))

    return init


def glorot_uniform(key, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
    """Sample kernels [..., I, O] from U(-a, a), a^2 = 6 / (fan-in + fan-out): the default of Keras.

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16.
    """
    del out_sharding
    receptive_field = math.prod(shape[:-2])
    variance = jnp.array(2 / (receptive_field * (shape[-2] + shape[-1])), dtype)
    return _flat_sample(_uniform, key, shape, dtype) * jnp.sqrt(3 * variance)


def _truncated_normal(key, shape, dtype):
    return jax.random.truncated_normal(key, -2, 2, shape, dtype)


def _uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1)


def _flat_sample(sample: Callable, key, shape, dtype) -> jax.Array:
    return sample(key, (math.prod(shape),), dtype).reshape(shape)
