"""From a configuration to what it names: data, networks, their update, and the compiled step that `train` calls."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from idrid_jax import config as config_lib
from idrid_jax.data import cache, eyes, folds, pools, resident, stream
from idrid_jax.data.order import Order
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Functional, functional
from idrid_jax.models.layers import rows_over
from idrid_jax.models.pooled import pooled
from idrid_jax.training import ema, layer_table, schedules
from idrid_jax.training import mesh as mesh_lib
from idrid_jax.training.augment import TRANSFORMS, Augmentation, Strengths
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import TrainState, init_state
from idrid_jax.training.step import Metrics, Update

ENLARGED = 1.05  # as much as photographs may be enlarged for a network

# Of XLA, for NVIDIA GPUs: what may be launched as one CUDA graph. Its defaults, and convolutions: without these a step
# is torn into pieces, and one of a small batch takes as long as the host needs to launch some 300 kernels (dcgan28 at
# batch 128: 1.9 ms, not 1.0; see bench/README.md).
GRAPHED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"


def find_release(config: ml_collections.ConfigDict) -> cache.Manifest:
    """The prepared release that `config.data` names. Raises UserError where there is none."""
    return cache.prepared(config.data.data_dir or None, config.data.release)


def load_split(
    config: ml_collections.ConfigDict, manifest: cache.Manifest, split: str, size: int | None = None
) -> cache.Split:
    """A split of a prepared release, `size` pixels a side (None: the network's). Raises UserError where `cache.load`
    does."""
    network = NETWORKS[config.network]
    size = network.size if size is None else size
    return cache.load(manifest, split, size=size, channels=network.channels, crop=config.data.crop)


def load_training(config: ml_collections.ConfigDict, manifest: cache.Manifest) -> tuple[cache.Split, cache.Split]:
    """The training split in two: what the networks are shown, and what only chooses a checkpoint (may be empty).

    Under `config.data.one_side` both know which of their photographs have the disc on the left; the images stay as they
    are, so that whatever else looks at them sees the photographs. Raises UserError where `load_split` and
    `check_size` do, or a conditional network would get fewer than `config.data.least_of_grade` of a class.
    """
    check_size(config, manifest)
    whole = load_split(config, manifest, "train")
    if config.data.one_side:
        whole = dataclasses.replace(whole, left=~eyes.disc_on_right(whole.images))
    held = folds.validation(manifest, config.data.validation_folds)
    shown = whole.part(~held) if held.any() else whole
    if NETWORKS[config.network].conditional:
        pools.check_enough(shown.grades, config.data.pools, config.data.least_of_grade, config.network)
    return shown, whole.part(held)


def check_size(config: ml_collections.ConfigDict, manifest: cache.Manifest) -> None:
    """Raises UserError where the network is larger than the photographs: it would learn what interpolation made up."""
    size = NETWORKS[config.network].size
    held = cache.size_held(manifest, config.data.crop, size)
    if held is None or size <= ENLARGED * held:
        return
    fitting = 2 ** int(math.log2(ENLARGED * held))
    named = " or ".join(name for name, network in NETWORKS.items() if network.size == fitting)
    raise UserError(
        f"config.network = {config.network!r} draws {size} pixels a side, and the photographs of {manifest.name} hold "
        f"{held}: the largest size that fits is {fitting}" + (f", take {named}" if named else "")
    )


def networks(config: ml_collections.ConfigDict) -> tuple[Functional, Functional]:
    """Generator and discriminator of `config.network`, computing in `config.dtype`; whoever calls them gives grades,
    and they are told the classes of `config.data.pools`."""
    network, dtype = NETWORKS[config.network], jnp.dtype(config.dtype)
    options = {name: config.model[name] for name in network.options}
    classes = pools.classes(config.data.pools)
    make = lambda module: pooled(functional(lambda rngs: module(dtype=dtype, rngs=rngs, **options)), classes)
    return make(network.generator), make(network.discriminator)


def make_update(
    config: ml_collections.ConfigDict, generator: Functional, discriminator: Functional
) -> tuple[Update, Callable]:
    """The update of `config`, and the function key -> fresh TrainState that goes with it."""
    config = config_lib.resolved(config)
    optimizer, schedule = config.optimizer, config.schedule
    factor = lambda last: lambda step: schedules.cosine(step * (config.batch_size / 1000), schedule.kimg, last)

    def adam(learning_rate):
        if schedule.kimg and schedule.learning_rate != 1:
            first, now = learning_rate, factor(schedule.learning_rate)
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
        latent=NETWORKS[config.network].latent,
        loss=config.loss.name,
        weights=weights,
        smoothing=config.loss.label_smoothing,
        flip=config.data.flip,
        augment=augmentation(config),
        ema_decay=ema.decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        ema_ramp=not config.init_from,
        hears=hears(config),
        accumulate=config.accumulate,
        **dict(penalty_scale=factor(schedule.penalty)) if schedule.kimg and schedule.penalty != 1 else {},
    )
    averages = dict(ema=bool(config.ema_kimg), lecam=bool(config.loss.lecam))
    averages["augment"] = config.augment.mode == "adaptive"
    return update, lambda key: init_state(key, generator, discriminator, g_tx, d_tx, **averages)


def hears(config: ml_collections.ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(grades int32 [B] or shares float32 [B, 5], step) -> what the networks of `config` take in their place there."""
    start, length = config.conditioning.start_kimg, config.conditioning.ramp_kimg
    if not start and not length:
        return lambda grades, step: grades
    kimg = config.batch_size / 1000
    return lambda grades, step: schedules.faded(grades, schedules.ramp(step * kimg, start, length))


def augmentation(config: ml_collections.ConfigDict) -> Augmentation | None:
    """Of `config.augment`; None where it is off."""
    chosen = config.augment
    if chosen.mode == "none":
        return None
    p = chosen.p if chosen.mode == "fixed" else None
    return Augmentation(strengths(config), p=p, target=chosen.target, images=1000 * chosen.kimg)


def strengths(config: ml_collections.ConfigDict) -> Strengths:
    """Of the transforms, on or off."""
    return Strengths(**{name: config.augment[name] for name in TRANSFORMS})


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled update, or several in one call: state -> (next state, metrics, each float32 [steps]).

    Attributes:
      jitted: of the state and the data; `bench` also lowers it, for what the compiler says of it.
      data: gives what comes after the state at the next call: the split on the devices, or batches of the stream.
      steps: updates that a call makes.
      data_from: step -> `data` from that step on; None where it is the same at each.
    """

    jitted: jax.stages.Wrapped
    data: Callable[[], tuple[jax.Array, ...]]
    steps: int = 1
    data_from: Callable[[int], Callable[[], tuple[jax.Array, ...]]] | None = None

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        return self.jitted(state, *self.data())

    def starting_at(self, step: int) -> "Step":
        """The same program, for a state of `step` at the next call."""
        return dataclasses.replace(self, data=self.data_from(step)) if self.data_from else self


def compile_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, split: cache.Split, first_step: int
) -> Step:
    """The step of `config`, by the way in that `config.data.way` names, beginning at `first_step`.

    A call makes `config.dispatch_steps` updates. The state is donated. Photographs of `split.left` are shown mirrored,
    from a copy in memory. Batches are functions of (seed, step): the first
    call must be with the state of `first_step`.
    """
    steps = config.dispatch_steps
    if split.left is not None:
        split = dataclasses.replace(split, images=eyes.turned(split.images, split.left), left=None)
    if way_in(config, split, mesh) == "resident":
        jitted, parts = _resident(config, update, mesh, split)
        data = resident.put(split.images, split.grades, mesh, parts=parts)
        return Step(jitted, lambda: data, steps)

    def batches_from(step):
        batches = streamed(config, split, step)

        def to_devices():
            several = [next(batches) for _ in range(steps)]
            return tuple(mesh_lib.to_global(np.stack(local), mesh) for local in zip(*several))

        return to_devices

    return Step(_jit(config, update, mesh, steps), batches_from(first_step), steps, batches_from)


def streamed(
    config: ml_collections.ConfigDict, split: cache.Split, first_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's part of each batch of `config` from `first_step` on: `stream.batches`."""
    return stream.batches(
        split.images,
        split.grades,
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.data.sampling,
        temperature=config.data.temperature,
        first_step=first_step,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def compile_bare_step(
    config: ml_collections.ConfigDict, update: Update, mesh: jax.sharding.Mesh, images: np.ndarray, grades: np.ndarray
) -> Step:
    """The step on one and the same batch, uint8 [B, R, R, C] and int32 [B], which lies on the devices: for `bench`."""
    batch = mesh_lib.to_global(images[None], mesh), mesh_lib.to_global(grades[None], mesh)
    return Step(_jit(config, update, mesh), lambda: batch)


def abstract_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, split: cache.Split | None = None
) -> tuple[jax.stages.Wrapped, TrainState, tuple[jax.ShapeDtypeStruct, ...]]:
    """The jitted step, and its state and data as shapes with their shardings, to be lowered without an array.

    Data are a batch that lies on the devices, or `split` as `compile_step` has it. The devices of `mesh` need not be
    there: those of a topology that is only described will do.
    """
    update, init = make_update(config, *networks(config))
    state = abstract_state(config, init, mesh)
    placed = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    if split is not None and way_in(config, split, mesh) == "resident":
        jitted, parts = _resident(config, update, mesh, split)
        return jitted, state, resident.abstract(split.images.shape, mesh, parts=parts)
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
        np.asarray(split.grades),
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.data.sampling,
        temperature=config.data.temperature,
    )
    parts = in_parts(config, split, mesh)
    batch = lambda state, *data: resident.batch(order, *data, state.step, mesh, parts=parts)
    shardings = tuple(x.sharding for x in resident.abstract(split.images.shape, mesh, parts=parts))
    return _jit(config, update, mesh, config.dispatch_steps, shardings, batch), parts


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
        compiler_options=_compiler_options(mesh),
    )


def _compiler_options(mesh) -> dict[str, str]:
    device = mesh.devices.flat[0]
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return {}
    return {"xla_gpu_enable_command_buffer": GRAPHED}


def way_in(config: ml_collections.ConfigDict, split: cache.Split, mesh: jax.sharding.Mesh) -> str:
    """ "resident" or "stream": what `config.data.way` says, or what "auto" comes to: resident while the split, or each
    device's part of it with what putting a batch together takes, is no more than `config.data.resident_mib`."""
    if config.data.way != "auto":
        return config.data.way
    needed = split.images.nbytes
    if in_parts(config, split, mesh):
        needed = resident.bytes_in_parts(split.images.shape, config.batch_size, mesh)
    return "resident" if needed <= config.data.resident_mib * 2**20 else "stream"


def in_parts(config: ml_collections.ConfigDict, split: cache.Split, mesh: jax.sharding.Mesh) -> bool:
    """Whether a resident split is spread over the devices, as `config.data.resident_mib` does not hold it whole."""
    return mesh.size > 1 and split.images.nbytes > config.data.resident_mib * 2**20


def table(config: ml_collections.ConfigDict) -> str:
    """The layers of both networks with their shapes, for one image."""
    network = NETWORKS[config.network]
    shape = lambda dtype, *size: jax.ShapeDtypeStruct((1, *size), dtype)
    inputs = (
        shape(jnp.float32, network.latent),
        shape(jnp.float32, network.size, network.size, network.channels),
    )
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.remat = False  # the same layers, which remat would call as copies
    return "\n\n".join(layer_table.table(made, x, shape(jnp.int32)) for made, x in zip(networks(config), inputs))
