"""From a configuration to what it names: data, networks, their update, and the compiled step that `train` calls."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from idrid_jax.data import cache, resident, stream
from idrid_jax.data.order import Order
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Functional, functional
from idrid_jax.training import ema, record
from idrid_jax.training import mesh as mesh_lib
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.state import TrainState, generator_params, init_state
from idrid_jax.training.step import Metrics, Update


def load_split(config: ml_collections.ConfigDict, split: str) -> tuple[cache.Manifest, cache.Split]:
    """The prepared release that `config.data` names, and one of its splits at the network's size."""
    network = NETWORKS[config.network]
    manifest = cache.prepared(config.data.data_dir or None, config.data.release)
    return manifest, cache.load(manifest, split, size=network.size, channels=network.channels, crop=config.data.crop)


def networks(config: ml_collections.ConfigDict) -> tuple[Functional, Functional]:
    """Generator and discriminator of `config.network`, computing in `config.dtype`."""
    network, dtype = NETWORKS[config.network], jnp.dtype(config.dtype)
    make = lambda module: functional(lambda rngs: module(dtype=dtype, rngs=rngs))
    return make(network.generator), make(network.discriminator)


def make_update(config: ml_collections.ConfigDict, generator: Functional, discriminator: Functional) -> tuple[Update, Callable]:
    """The update of `config`, and the function key -> fresh TrainState that goes with it."""
    optimizer = config.optimizer
    def adam(learning_rate):
        clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
        return optax.chain(*clip, optax.adam(learning_rate, b1=optimizer.b1, b2=optimizer.b2))
    g_tx, d_tx = adam(optimizer.g_learning_rate), adam(optimizer.d_learning_rate)
    update = Update(
        generator, discriminator, g_tx, d_tx, latent=NETWORKS[config.network].latent,
        smoothing=config.loss.label_smoothing, flip=config.data.flip,
        ema_decay=ema.decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None)
    return update, lambda key: init_state(key, generator, discriminator, g_tx, d_tx, ema=bool(config.ema_kimg))


def compile_step(config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, split: cache.Split,
                 first_step: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """state -> (next state, metrics), by the way in that `config.data.way` names, beginning at `first_step`.

    The state is donated. Batches are functions of (seed, step): the first call must be with the state of `first_step`.
    """
    everywhere, over_devices = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
    key = jax.random.key(config.seed)

    def step(state, images, grades):
        return update(state, images, grades, jax.random.fold_in(key, state.step))

    jit = lambda function, sharding: jax.jit(
        function, donate_argnums=0, in_shardings=(everywhere, sharding, sharding), out_shardings=(everywhere, everywhere))

    if way_in(config, split) == "resident":
        order = Order(np.asarray(split.grades), seed=config.seed, batch_size=config.batch_size, sampling=config.data.sampling)
        data = resident.put(split.images, split.grades, everywhere)
        compiled = jit(lambda state, *data: step(state, *resident.batch(order, *data, state.step, over_devices)), everywhere)
        return lambda state: compiled(state, *data)

    batches = stream.batches(
        split.images, split.grades, seed=config.seed, batch_size=config.batch_size, sampling=config.data.sampling,
        first_step=first_step, process=jax.process_index(), processes=jax.process_count())
    compiled = jit(step, over_devices)
    return lambda state: compiled(state, *(mesh_lib.to_global(local, mesh) for local in next(batches)))


def way_in(config: ml_collections.ConfigDict, split: cache.Split) -> str:
    """"resident" or "stream": what `config.data.way` says, or what "auto" comes to."""
    if config.data.way != "auto":
        return config.data.way
    return "resident" if split.images.nbytes <= config.data.resident_mib * 2**20 else "stream"


def table(config: ml_collections.ConfigDict) -> str:
    """The layers of both networks with their shapes, for one image."""
    network, dtype = NETWORKS[config.network], jnp.dtype(config.dtype)
    image = jnp.zeros((1, network.size, network.size, network.channels))
    tables = []
    for make, x in ((network.generator, jnp.zeros((1, network.latent))), (network.discriminator, image)):
        module = make(dtype=dtype, rngs=nnx.Rngs(0))
        module.eval()
        tables.append(nnx.tabulate(module, x, jnp.zeros((1,), jnp.int32),
                                   console_kwargs={"width": 120, "force_terminal": False}))
    return "\n".join(line.rstrip() for line in "\n".join(tables).splitlines())


def start_from(config: ml_collections.ConfigDict, state: TrainState) -> TrainState:
    """A fresh state with both networks, and the moving average, of the newest checkpoint of the run `config.init_from`.

    Optimizers and progress start anew. Raises UserError where there is no such run, or it is of another network.
    """
    other = record.read(Path(config.init_from))
    if other is None:
        raise UserError(f"config.init_from = {config.init_from!r}: no run is there (no {record.NAME})")
    if other.config.network != config.network:
        raise UserError(f"config.init_from = {config.init_from!r}: its network is {other.config.network}, not {config.network}")
    _, init = make_update(other.config, *networks(other.config))
    like = jax.eval_shape(init, jax.random.key(0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state.step.sharding), like)
    with Checkpoints(Path(config.init_from)) as checkpoints:
        source = checkpoints.restore(like)
    if source is None:
        raise UserError(f"config.init_from = {config.init_from!r}: the run has no checkpoint yet")
    take = lambda to, network: dataclasses.replace(to, params=network.params, stats=network.stats)
    average = jax.tree.map(jnp.copy, generator_params(source)) if config.ema_kimg else {}
    return dataclasses.replace(state, g=take(state.g, source.g), d=take(state.d, source.d), ema=average)
