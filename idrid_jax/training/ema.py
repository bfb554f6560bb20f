"""The moving average of the generator's parameters, whose half-life is counted in images (Karras et al. 2018, section
4.3)."""

import jax
import jax.numpy as jnp


def decay(batch_size: int, half_life_kimg: float) -> float:
    """The factor per step after which a weight has halved in `half_life_kimg` thousand images."""
    return 0.5 ** (batch_size / (half_life_kimg * 1000))


def update(average, params, factor: float, step: jax.Array | None):
    """average + (1 - f) (params - average), leaf by leaf in float32; `step` int32 [], 0 at the first update.

    f is at most (1 + step) / (10 + step), so that the first images' weights do not linger in a young average; with
    None, f is `factor` from the start.
    """
    if step is not None:
        factor = jnp.minimum(factor, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + (1 - factor) * (p - a), average, params)
