"""From a configuration to what it names: data, networks, their update, and the compiled step that `train` calls."""

import contextlib
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
from idrid_jax.models.layers import rows_over
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
    options = {name: config.model[name] for name in network.options}
    make = lambda module: functional(lambda rngs: module(dtype=dtype, rngs=rngs, **options))
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
    """The compiled update, or several in one call: state -> (next state, metrics, each float32 [steps]).

    Attributes:
      jitted: of the state and the data; `bench` also lowers it, for what the compiler says of it.
      data: gives what comes after the state at the next call: the split on the devices, or batches of the stream.
      steps: updates that a call makes.
    """

    jitted: jax.stages.Wrapped
    data: Callable[[], tuple[jax.Array, ...]]
    steps: int = 1

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        return self.jitted(state, *self.data())


def compile_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, split: cache.Split, first_step: int
) -> Step:
    """The step of `config`, by the way in that `config.data.way` names, beginning at `first_step`.

    A call makes `config.dispatch_steps` updates. The state is donated. Batches are functions of (seed, step): the first
    call must be with the state of `first_step`.
    """
    steps = config.dispatch_steps
    if way_in(config, split, mesh) == "resident":
        jitted, parts = _resident(config, update, mesh, split)
        data = resident.put(split.images, split.grades, mesh, parts=parts)
        return Step(jitted, lambda: data, steps)

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

    def to_devices():
        several = [next(batches) for _ in range(steps)]
        return tuple(mesh_lib.to_global(np.stack(local), mesh) for local in zip(*several))

    return Step(_jit(config, update, mesh, steps), to_devices, steps)


def compile_bare_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, images: np.ndarray, grades: np.ndarray
) -> Step:
    """The step on one and the same batch, uint8 [B, R, R, C] and int32 [B], which lies on the devices: for `bench`."""
    batch = mesh_lib.to_global(images[None], mesh), mesh_lib.to_global(grades[None], mesh)
    return Step(_jit(config, update, mesh), lambda: batch)


def lower_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, split: cache.Split | None = None
) -> jax.stages.Lowered:
    """The step of `config` lowered from shapes alone, on a batch that lies on the devices, or on `split` as
    `compile_step` has it.

    The devices of `mesh` need not be there: those of a topology that is only described will do.
    """
    jitted, state, data = abstract_step(config, mesh, split)
    return jitted.lower(state, *data)


def abstract_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, split: cache.Split | None = None
) -> tuple[jax.stages.Wrapped, TrainState, tuple[jax.ShapeDtypeStruct, ...]]:
    """What `lower_step` lowers: the jitted step, and its state and data as shapes with their shardings."""
    update, init = make_update(config, *networks(config))
    state = abstract_state(config, init, mesh)
    placed = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    if split is not None and way_in(config, split, mesh) == "resident":
        jitted, parts = _resident(config, update, mesh, split)
        images, grades = resident.shardings(mesh, parts)
        count = -(-len(split.images) // mesh.shape["data"]) * mesh.shape["data"] if parts else len(split.images)
        shape = (count, *split.images.shape[1:])
        return jitted, state, (placed(shape, jnp.uint8, images), placed(split.grades.shape, jnp.int32, grades))
    network, batch = NETWORKS[config.network], config.batch_size
    shape = (1, batch, network.size, network.size, network.channels)
    images, grades = mesh_lib.stacked(mesh_lib.split_images(mesh)), mesh_lib.stacked(mesh_lib.split_batch(mesh))
    data = placed(shape, jnp.uint8, images), placed((1, batch), jnp.int32, grades)
    return _jit(config, update, mesh), state, data


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
    _, init = make_update(config, *networks(config))
    return mesh_lib.split_arrays(jax.eval_shape(init, jax.random.key(0)), mesh)


def fresh_state(config: ml_collections.ConfigDict, init: Callable, mesh: jax.sharding.Mesh) -> TrainState:
    """The state of `config` before its first step, a function of `config.seed`, on the devices of `mesh`."""
    return jax.jit(init, out_shardings=state_sharding(config, mesh))(jax.random.key(config.seed))


def _resident(config, update, mesh, split) -> tuple[jax.stages.Wrapped, bool]:
    """The jitted step that takes its batches from `split` on the devices, and whether that lies there in parts."""
    order = Order(
        np.asarray(split.grades), seed=config.seed, batch_size=config.batch_size, sampling=config.data.sampling
    )
    parts = in_parts(config, split, mesh)
    batch = lambda state, *data: resident.batch(order, *data, state.step, mesh, parts=parts)
    return _jit(config, update, mesh, config.dispatch_steps, resident.shardings(mesh, parts), batch), parts


def _jit(config, update, mesh, steps=1, sharding=None, batch=None) -> jax.stages.Wrapped:
    """`steps` updates of a state, jitted.

    batch: makes images and grades of the state and data with `sharding`; without it data are batches, [steps, B, ...].
    """
    over_devices = mesh_lib.split_batch(mesh), mesh_lib.split_images(mesh)
    update = dataclasses.replace(update, over_devices=over_devices)
    state = state_sharding(config, mesh)
    sharding = sharding or (mesh_lib.stacked(over_devices[1]), mesh_lib.stacked(over_devices[0]))
    key = jax.random.key(config.seed)

    def several(state, *data):
        def one(state, now):
            images, grades = batch(state, *data) if batch else now
            with rows_over(mesh) if mesh.shape[mesh_lib.ROWS] > 1 else contextlib.nullcontext():
                return update(state, images, grades, jax.random.fold_in(key, state.step))

        if steps > 1:
            return jax.lax.scan(one, state, None if batch else data, length=steps)
        state, metrics = one(state, None if batch else [x[0] for x in data])
        return state, jax.tree.map(lambda x: x[None], metrics)

    return jax.jit(
        several,
        donate_argnums=0,
        in_shardings=(state, *sharding),
        out_shardings=(state, mesh_lib.replicated(mesh)),
    )


def way_in(config: ml_collections.ConfigDict, split: cache.Split, mesh: jax.sharding.Mesh) -> str:
    """ "resident" or "stream": what `config.data.way` says, or what "auto" comes to: resident while the split, or each
    device's part of it, takes no more than `config.data.resident_mib`."""
    if config.data.way != "auto":
        return config.data.way
    most = config.data.resident_mib * 2**20 * (mesh.size if in_parts(config, split, mesh) else 1)
    return "resident" if split.images.nbytes <= most else "stream"


def in_parts(config: ml_collections.ConfigDict, split: cache.Split, mesh: jax.sharding.Mesh) -> bool:
    """Whether a resident split is spread over the devices, as `config.data.resident_mib` does not hold it whole."""
    return mesh.shape[mesh_lib.DATA] > 1 and split.images.nbytes > config.data.resident_mib * 2**20


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
    begun = dataclasses.replace(state, g=take(state.g, source.g), d=take(state.d, source.d), ema=average)
    placed = jax.tree.map(lambda x: x.sharding, state)  # split under fsdp, as the other run's need not be
    return jax.jit(lambda state: state, out_shardings=placed)(begun)
