"""From a configuration to what it names: networks, their update, and the state that it begins with."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.models.functional import Functional
from idrid_jax.training import ema, optimizers
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.augment import augmentation_from_config
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import TrainState, init_state
from idrid_jax.training.update import Update


def make_update(
    config: ml_collections.ConfigDict, generator: Functional, discriminator: Functional
) -> tuple[Update, Callable]:
    """The update of `config`, and the function key -> fresh TrainState that goes with it."""
    optimizer, schedule = config.optimizer, config.schedule
    factor = lambda last: lambda step: optimizers.cosine(step * (config.batch_size / 1000), schedule.kimg, last)

    def adam(learning_rate):
        if schedule.kimg and schedule.learning_rate_factor != 1:
            first, now = learning_rate, factor(schedule.learning_rate_factor)
            learning_rate = lambda step: first * now(step)
        clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
        return optax.chain(*clip, optax.adam(learning_rate, b1=optimizer.b1, b2=optimizer.b2))

    g_tx, d_tx = adam(optimizer.g_learning_rate), adam(optimizer.d_learning_rate)
    weights = Weights(**{field.name: config.loss[field.name] for field in dataclasses.fields(Weights)})
    update = Update(
        generator,
        discriminator,
        g_tx,
        d_tx,
        latent=NETWORKS[config.network].latent_size,
        loss=config.loss.name,
        weights=weights,
        smoothing=config.loss.label_smoothing,
        flip=config.data.flip,
        augment=augmentation_from_config(config),
        ema_decay=ema.decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        ema_ramp=not config.init_from,
        hears=hears(config),
        accumulate=config.accumulate,
        **dict(penalty_scale=factor(schedule.penalty_factor)) if schedule.kimg and schedule.penalty_factor != 1 else {},
    )
    averages = dict(ema=bool(config.ema_kimg), lecam=bool(config.loss.lecam))
    averages["augment"] = config.augment.mode == "adaptive"
    return update, lambda key: init_state(key, generator, discriminator, g_tx, d_tx, **averages)


def heard(config: ml_collections.ConfigDict, step: int) -> float:
    """How much of its grades a generator hears at `step`: 1, or less while `config.conditioning` lets them fade in."""
    start, length = config.conditioning.start_kimg, config.conditioning.ramp_kimg
    if not start and not length:
        return 1.0
    return round(float(optimizers.ramp(step * config.batch_size / 1000, start, length)), 6)  # a rounding is no share


def hears(config: ml_collections.ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(grades int32 [B] or shares float32 [B, 5], step) -> what the networks of `config` take in their place there."""
    start, length = config.conditioning.start_kimg, config.conditioning.ramp_kimg
    if not start and not length:
        return lambda grades, step: grades
    kimg = config.batch_size / 1000
    return lambda grades, step: optimizers.faded(grades, optimizers.ramp(step * kimg, start, length))


def abstract_state(config: ml_collections.ConfigDict, init: Callable, mesh: jax.sharding.Mesh) -> TrainState:
    """`fresh_state` as shapes, dtypes and shardings, without an array."""
    placed = lambda sharding, part: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
    )
    return jax.tree.map(placed, state_sharding(config, mesh), jax.eval_shape(init, jax.random.key(0)))


def state_sharding(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh):
    """How the TrainState of `config` lies on the devices: one sharding for all of it, or under `config.mesh.fsdp` a
    tree of them."""
    if not config.mesh.fsdp:
        return mesh_lib.replicated(mesh)
    _, init = make_update(config, *build_networks(config))
    return mesh_lib.split_arrays(jax.eval_shape(init, jax.random.key(0)), mesh)


def fresh_state(config: ml_collections.ConfigDict, init: Callable, mesh: jax.sharding.Mesh) -> TrainState:
    """The state of `config` before its first step, a function of `config.seed`, on the devices of `mesh`."""
    return jax.jit(init, out_shardings=state_sharding(config, mesh))(jax.random.key(config.seed))
