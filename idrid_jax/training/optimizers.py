"""Optimizers, schedules and the moving average of the generator; schedules are pure functions of the update count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from idrid_jax.models.layers import NUM_GRADES


def make_optimizer(config: ml_collections.ConfigDict, learning_rate: float) -> optax.GradientTransformation:
    """Return Adam with the betas, clipping and learning-rate schedule of `config`; `learning_rate` is the first one."""
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.kimg and schedule.learning_rate_factor != 1:
        learning_rate = _cosine(config, learning_rate, schedule.learning_rate_factor)
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    return optax.chain(*clip, optax.adam(learning_rate, b1=optimizer.b1, b2=optimizer.b2))


def penalty_schedule(config: ml_collections.ConfigDict) -> Callable[[jax.Array], jax.Array | float]:
    """Return step -> factor of the gradient penalties' weights."""
    schedule = config.schedule
    if not schedule.kimg or schedule.penalty_factor == 1:
        return lambda step: 1.0
    return _cosine(config, 1.0, schedule.penalty_factor)


def _cosine(config, first, factor):
    """Half a cosine from `first` to factor * first over `schedule.kimg`, then constant; step -> float32 [].

    Loshchilov and Hutter 2017 ("SGDR"), equation 5, without restarts; Huang et al. 2024 (R3GAN) apply it to learning
    rate and penalty.
    """
    steps = config.schedule.kimg * 1000 / config.batch_size
    return optax.cosine_decay_schedule(first, steps, alpha=factor)


# -- Transitional conditioning: Shahbazi et al. 2022 ("Collapse by conditioning"), equation 3


def conditioning_strength(config: ml_collections.ConfigDict, step: jax.Array | int) -> jax.Array | float:
    """Return how strongly the networks are conditioned on grades at `step`: 0 not at all, 1 fully; float32 [].

    0 up to `conditioning.start_kimg`, then linear to 1 over `conditioning.ramp_kimg`. It is 1.0 without a jax
    operation where `config` uses no transition.
    """
    start, ramp = config.conditioning.start_kimg, config.conditioning.ramp_kimg
    if not start and not ramp:
        return 1.0
    kimg = step * (config.batch_size / 1000)
    return jnp.clip((kimg - start) / max(ramp, 1e-9), 0, 1).astype(jnp.float32)


def grade_conditioning(config: ml_collections.ConfigDict) -> Callable[[jax.Array, jax.Array | int], jax.Array]:
    """Return (grades, step) -> what the networks are conditioned on at `step`.

    grades are int32 [B], or shares of the five grades, float32 [B, 5]. Without a transition they are returned as they
    are; otherwise as shares times `conditioning_strength`.
    """
    if not config.conditioning.start_kimg and not config.conditioning.ramp_kimg:
        return lambda grades, step: grades
    return lambda grades, step: scale_grades(grades, conditioning_strength(config, step))


def scale_grades(grades: jax.Array, strength: jax.Array | float) -> jax.Array:
    """Return grades int32 [B], or shares float32 [B, 5], as shares times `strength`, float32 [B, 5]."""
    if jnp.issubdtype(grades.dtype, jnp.integer):
        grades = jax.nn.one_hot(grades, NUM_GRADES, dtype=jnp.float32)
    return strength * grades


# -- Moving average of the generator's parameters, with its half-life in images: Karras et al. 2018, section 4.3


def ema_decay(batch_size: int, half_life_kimg: float) -> float:
    """Return the decay per update with which a weight halves in `half_life_kimg` thousand images."""
    return 0.5 ** (batch_size / (half_life_kimg * 1000))


def update_ema(ema, params, decay: float, step: jax.Array | None):
    """Move `ema` towards `params` by 1 - decay, leaf by leaf.

    step: int32 [], 0 at the first update: the decay is then at most (1 + step) / (10 + step), so that early weights do
    not stay in a young average. None: `decay` from the start.
    """
    if step is not None:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, ema, 1 - decay)
