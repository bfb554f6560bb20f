"""The compiled step that `train` calls, by the way in that its configuration names."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from idrid_jax.data import cache
from idrid_jax.data.pipeline import choose_pipeline, host_batches, is_sharded, make_order, resident
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.models.layers import shard_rows
from idrid_jax.training import build
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.state import TrainState
from idrid_jax.training.update import Metrics, Update

# Of XLA, for NVIDIA GPUs: what may be launched as one CUDA graph. Its defaults, and convolutions: without these a step
# is torn into pieces, and one of a small batch takes as long as the host needs to launch some 300 kernels (dcgan28 at
# batch 128: 1.9 ms, not 1.0; see bench/README.md).
GRAPHED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"


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
    """The step of `config`, by the way in that `config.data.pipeline` names, beginning at `first_step`.

    A call makes `config.dispatch_steps` updates. The state is donated. Batches are functions of (seed, step): the first
    call must be with the state of `first_step`.
    """
    steps = config.dispatch_steps
    if choose_pipeline(config, split, mesh) == "resident":
        jitted, sharded = _resident(config, update, mesh, split)
        data = resident.put(split, mesh, sharded=sharded)
        return Step(jitted, lambda: data, steps)

    def batches_from(step):
        batches = host_batches(config, split, step)

        def to_devices():
            several = [next(batches) for _ in range(steps)]
            return tuple(mesh_lib.to_global(np.stack(local), mesh) for local in zip(*several))

        return to_devices

    return Step(_jit(config, update, mesh, steps), batches_from(first_step), steps, batches_from)


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
    update, init = build.make_update(config, *build_networks(config))
    state = build.abstract_state(config, init, mesh)
    placed = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    if split is not None and choose_pipeline(config, split, mesh) == "resident":
        jitted, sharded = _resident(config, update, mesh, split)
        return jitted, state, resident.abstract(split.images.shape, mesh, sharded=sharded)
    network, batch = NETWORKS[config.network], config.batch_size
    shape = (1, batch, network.size, network.size, network.channels)
    images, grades = mesh_lib.stacked(mesh_lib.split_images(mesh)), mesh_lib.stacked(mesh_lib.split_batch(mesh))
    data = placed(shape, jnp.uint8, images), placed((1, batch), jnp.int32, grades)
    return _jit(config, update, mesh), state, data


def _resident(config, update, mesh, split) -> tuple[jax.stages.Wrapped, bool]:
    """The jitted step that takes its batches from `split` on the devices, and whether it is sharded over them."""
    order, sharded = make_order(config, split), is_sharded(config, split, mesh)
    batch = lambda state, *data: resident.batch(order, *data, state.step, mesh, sharded=sharded)
    shardings = tuple(x.sharding for x in resident.abstract(split.images.shape, mesh, sharded=sharded))
    return _jit(config, update, mesh, config.dispatch_steps, shardings, batch), sharded


def _jit(config, update, mesh, steps=1, sharding=None, batch=None) -> jax.stages.Wrapped:
    """`steps` updates of a state, jitted.

    batch: makes images and grades of the state and data with `sharding`; without it data are batches, [steps, B, ...].
    """
    over_devices = mesh_lib.split_batch(mesh), mesh_lib.split_images(mesh)
    update = dataclasses.replace(update, over_devices=over_devices)
    state = build.state_sharding(config, mesh)
    sharding = sharding or (mesh_lib.stacked(over_devices[1]), mesh_lib.stacked(over_devices[0]))
    key = jax.random.key(config.seed)

    def several(state, *data):
        def one(state, now):
            images, grades = batch(state, *data) if batch else now
            with shard_rows(mesh) if mesh.shape[mesh_lib.ROWS] > 1 else contextlib.nullcontext():
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
