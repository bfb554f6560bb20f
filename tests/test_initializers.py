"""Initializers sample the numbers of `jax.nn.initializers`, for kernels of every rank that is used."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrid_jax.models import initializers

library = jax.nn.initializers


@pytest.mark.parametrize("shape", [(100, 48), (3, 3, 16, 24)])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (initializers.normal(0.02), library.normal(0.02)),
        (initializers.variance_scaled(1.3), library.variance_scaling(1.3**2, "fan_in", "normal")),
        (initializers.variance_scaled(math.sqrt(2), truncated=True), library.he_normal()),
        (initializers.glorot_uniform, library.glorot_uniform()),
    ],
    ids=["normal", "variance", "he", "glorot"],
)
def test_the_same_numbers(ours, theirs, shape):
    key = jax.random.key(3)
    sample = jax.jit(lambda key: ours(key, shape, jnp.float32))(key)
    assert sample.shape == shape and sample.dtype == jnp.float32
    np.testing.assert_allclose(sample, jax.jit(lambda key: theirs(key, shape, jnp.float32))(key), rtol=3e-7)


def test_mean_and_zero_gain():
    key = jax.random.key(1)
    expected = 1 + 0.02 * jax.random.normal(key, (64,))
    np.testing.assert_allclose(initializers.normal(0.02, mean=1.0)(key, (64,)), expected, rtol=2e-7)
    assert not initializers.variance_scaled(0.0)(key, (3, 3, 4, 4)).any()
