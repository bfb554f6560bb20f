"""From a configuration to what it names: data, networks, their update, and the compiled step that `train` calls."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from idrid_jax import config as config_lib
from idrid_jax.data import cache, resident, stream
from idrid_jax.data.order import Order
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Functional, functional
from idrid_jax.training import ema, layers, record
from idrid_jax.training import mesh as mesh_lib
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.state import TrainState, generator_params, init_state
from idrid_jax.training.step import Metrics, Update


def find_release(config: ml_collections.ConfigDict) -> cache.Manifest:
    """The prepared release that `config.data` names. Raises UserError where there is none."""
    return cache.prepared(config.data.data_dir or None, config.data.release)


def load_split(config: ml_collections.ConfigDict, manifest: cache.Manifest, split: str) -> cache.Split:
    """A split of a prepared release at the network's size. Raises UserError where `cache.load` does."""
    network = NETWORKS[config.network]
    return cache.load(manifest, split, size=network.size, channels=network.channels, crop=config.data.crop)


def networks(config: ml_collections.ConfigDict) -> tuple[Functional, Functional]:
    """Generator and discriminator of `config.network`, computing in `config.dtype`."""
    network, dtype = NETWORKS[config.network], jnp.dtype(config.dtype)
    make = lambda module: functional(lambda rngs: module(dtype=dtype, rngs=rngs))
    return make(network.generator), make(network.discriminator)


def make_update(
    config: ml_collections.ConfigDict, generator: Functional, discriminator: Functional
) -> tuple[Update, Callable]:
    """The update of `config`, and the function key -> fresh TrainState that goes with it."""
    optimizer = config.optimizer

    def adam(learning_rate):
        clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
        return optax.chain(*clip, optax.adam(learning_rate, b1=optimizer.b1, b2=optimizer.b2))

    g_tx, d_tx = adam(optimizer.g_learning_rate), adam(optimizer.d_learning_rate)
    update = Update(
        generator,
        discriminator,
        g_tx,
        d_tx,
        latent=NETWORKS[config.network].latent,
        smoothing=config.loss.label_smoothing,
        flip=config.data.flip,
        ema_decay=ema.decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        ema_ramp=not config.init_from,
    )
    return update, lambda key: init_state(key, generator, discriminator, g_tx, d_tx, ema=bool(config.ema_kimg))


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled update: state -> (next state, metrics).

    Attributes:
      jitted: of the state and the data; `bench` also lowers it, for what the compiler says of it.
      data: gives what comes after the state at the next call: the split on the devices, or a batch of the stream.
    """

    jitted: jax.stages.Wrapped
    data: Callable[[], tuple[jax.Array, ...]]

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        return self.jitted(state, *self.data())


def compile_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, split: cache.Split, first_step: int
) -> Step:
    """The step of `config`, by the way in that `config.data.way` names, beginning at `first_step`.

    The state is donated. Batches are functions of (seed, step): the first call must be with the state of `first_step`.
    """
    everywhere, over_devices = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
    if way_in(config, split) == "resident":
        order = Order(
            np.asarray(split.grades), seed=config.seed, batch_size=config.batch_size, sampling=config.data.sampling
        )
        data = resident.put(split.images, split.grades, everywhere)
        batch = lambda state, *data: resident.batch(order, *data, state.step, over_devices)
        return Step(_jit(config, update, mesh, everywhere, batch), lambda: data)

    batches = stream.batches(
        split.images,
        split.grades,
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.data.sampling,
        first_step=first_step,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    to_devices = lambda: tuple(mesh_lib.to_global(local, mesh) for local in next(batches))
    return Step(_jit(config, update, mesh, over_devices), to_devices)


def compile_bare_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, images: np.ndarray, grades: np.ndarray
) -> Step:
    """The step on one and the same batch, uint8 [B, R, R, C] and int32 [B], which lies on the devices: for `bench`."""
    batch = mesh_lib.to_global(images, mesh), mesh_lib.to_global(grades, mesh)
    return Step(_jit(config, update, mesh, mesh_lib.split_batch(mesh)), lambda: batch)


def _jit(config, update, mesh, sharding, batch=lambda state, *data: data) -> jax.stages.Wrapped:
    """The jitted step of a state and data with `sharding`, of which `batch` makes images and grades."""
    everywhere = mesh_lib.replicated(mesh)
    update = dataclasses.replace(update, over_devices=mesh_lib.split_batch(mesh))
    key = jax.random.key(config.seed)
    return jax.jit(
        lambda state, *data: update(state, *batch(state, *data), jax.random.fold_in(key, state.step)),
        donate_argnums=0,
        in_shardings=(everywhere, sharding, sharding),
        out_shardings=(everywhere, everywhere),
    )


def way_in(config: ml_collections.ConfigDict, split: cache.Split) -> str:
    """ "resident" or "stream": what `config.data.way` says, or what "auto" comes to."""
    if config.data.way != "auto":
        return config.data.way
    return "resident" if split.images.nbytes <= config.data.resident_mib * 2**20 else "stream"


def table(config: ml_collections.ConfigDict) -> str:
    """The layers of both networks with their shapes, for one image."""
    network = NETWORKS[config.network]
    shape = lambda dtype, *size: jax.ShapeDtypeStruct((1, *size), dtype)
    inputs = (
        shape(jnp.float32, network.latent),
        shape(jnp.float32, network.size, network.size, network.channels),
    )
    return "\n\n".join(layers.table(made, x, shape(jnp.int32)) for made, x in zip(networks(config), inputs))


def read_run(
    workdir: Path | str, *, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> tuple[record.Record, TrainState]:
    """What a run's folder says of it, and the state of its newest readable checkpoint, or that of `step`.

    It reads and changes nothing, as another process may be training there: an unreadable checkpoint is reported on
    stderr and stays. The arrays come with `sharding` (None: whole on the first device).
    Raises UserError where no run is, its configuration is none, or no checkpoint (of that step) can be read.
    """
    workdir = Path(workdir)
    run = record.read(workdir)
    if run is None:
        raise UserError(f"{workdir}: no run is there (no {record.NAME}): name the --workdir of idrid-jax train")
    try:
        config_lib.check(run.config)
    except UserError as error:
        raise UserError(f"{workdir / record.NAME}: {error}") from error
    _, init = make_update(run.config, *networks(run.config))
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.eval_shape(init, jax.random.key(0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    state, unreadable = None, []
    with Checkpoints(workdir, run.fingerprint) as checkpoints:
        steps = checkpoints.steps()
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{workdir}: no checkpoint of step {step}; there are {there}")
        for candidate in steps[::-1] if step is None else [step]:
            try:
                state = checkpoints.restore(like, step=candidate)  # with a step it moves nothing
                break
            except UserError as error:
                unreadable.append(str(error))
    if state is None:
        wait = f"train until the first snapshot (config.snapshot_kimg = {run.config.snapshot_kimg:g})"
        raise UserError(unreadable[0] if unreadable else f"{workdir}: no checkpoint yet: {wait}")
    for message in unreadable:
        print(f"{message}; taking the one before", file=sys.stderr)
    return run, state


def start_from(config: ml_collections.ConfigDict, state: TrainState) -> TrainState:
    """A fresh state with both networks, and the moving average, of the newest checkpoint of the run `config.init_from`.

    Optimizers and progress start anew. Raises UserError where `read_run` does, or the run is of another network.
    """
    try:
        other, source = read_run(config.init_from, sharding=state.step.sharding)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    if other.config.network != config.network:
        raise UserError(
            f"config.init_from = {config.init_from!r}: its network is {other.config.network}, not {config.network}"
        )
    take = lambda to, network: dataclasses.replace(to, params=network.params, stats=network.stats)
    average = jax.tree.map(jnp.copy, generator_params(source)) if config.ema_kimg else {}
    return dataclasses.replace(state, g=take(state.g, source.g), d=take(state.d, source.d), ema=average)
