"""The compiled training step: one call makes one update, or several, with batches of the chosen input pipeline."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from idrid_jax.data.cache import Split
from idrid_jax.data.pipeline import choose_pipeline, host_batches, is_sharded, make_order, resident
from idrid_jax.models import NETWORKS
from idrid_jax.models.layers import shard_rows
from idrid_jax.training import sharding as sharding_lib
from idrid_jax.training.state import TrainState, abstract_state, state_sharding
from idrid_jax.training.update import Metrics, make_update, update_networks

# What XLA may launch as one CUDA graph on NVIDIA GPUs: its defaults, and convolutions. Without these a step is split
# into pieces, and one of a small batch takes as long as the host needs to launch some 300 kernels (dcgan28 at batch
# 128: 1.9 ms in place of 1.0; see bench/README.md).
COMMAND_BUFFERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION"


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A compiled step: state -> (next state, metrics, each float32 [updates]). The state is donated.

    Attributes:
      jitted: function of the state and the data; `bench` and `plan` also lower it.
      next_data: returns the data of the next call: the split on the devices, or the next batches of the stream.
      updates: updates in one call.
    """

    jitted: jax.stages.Wrapped
    next_data: Callable[[], tuple[jax.Array, ...]]
    updates: int = 1

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        return self.jitted(state, *self.next_data())


def make_train_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, split: Split, first_step: int
) -> TrainStep:
    """Return the step of `config` with its batches; the first call must be with the state of `first_step`.

    `config.data.pipeline` chooses where batches come from, and `config.dispatch_steps` how many updates a call makes.
    """
    update, updates = make_update(config), config.dispatch_steps
    if choose_pipeline(config, split, mesh) == "resident":
        jitted, sharded = _resident_step(config, update, mesh, split)
        data = resident.put(split, mesh, sharded=sharded)
        return TrainStep(jitted, lambda: data, updates)
    batches = host_batches(config, split, first_step)

    def next_batches():
        several = [next(batches) for _ in range(updates)]
        return tuple(sharding_lib.to_global(np.stack(local), mesh) for local in zip(*several))

    return TrainStep(_jit(config, update, mesh, updates), next_batches, updates)


def make_fixed_batch_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, images: np.ndarray, grades: np.ndarray
) -> TrainStep:
    """Return a step that uses one batch, uint8 [B, R, R, C] and int32 [B], again and again; for `bench`."""
    batch = sharding_lib.to_global(images[None], mesh), sharding_lib.to_global(grades[None], mesh)
    return TrainStep(_jit(config, make_update(config), mesh), lambda: batch)


def abstract_train_step(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, split: Split | None = None
) -> tuple[jax.stages.Wrapped, TrainState, tuple[jax.ShapeDtypeStruct, ...]]:
    """Return the jitted step with its state and data as shapes with shardings, to be lowered without an array.

    The data are a batch on the devices, or `split` as `make_train_step` uses it. The devices of `mesh` need not exist:
    those of a described topology are enough.
    """
    update, state = make_update(config), abstract_state(config, mesh)
    if split is not None and choose_pipeline(config, split, mesh) == "resident":
        jitted, sharded = _resident_step(config, update, mesh, split)
        return jitted, state, resident.abstract(split.images.shape, mesh, sharded=sharded)
    network, batch = NETWORKS[config.network], config.batch_size
    images, grades = _batch_shardings(mesh)
    shape = (1, batch, network.size, network.size, network.channels)
    data = (
        jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=images),
        jax.ShapeDtypeStruct((1, batch), jnp.int32, sharding=grades),
    )
    return _jit(config, update, mesh), state, data


def _resident_step(config, update, mesh, split) -> tuple[jax.stages.Wrapped, bool]:
    """The jitted step that gathers its batches from `split` on the devices, and whether the split is sharded."""
    order, sharded = make_order(config, split), is_sharded(config, split, mesh)
    data_sharding = tuple(x.sharding for x in resident.abstract(split.images.shape, mesh, sharded=sharded))

    def gather(state, *data):
        return resident.batch(order, *data, state.step, mesh, sharded=sharded)

    return _jit(config, update, mesh, config.dispatch_steps, data_sharding, gather), sharded


def _jit(config, update, mesh, updates=1, data_sharding=None, gather=None) -> jax.stages.Wrapped:
    """Jit `updates` updates.

    gather: (state, *data) -> images and grades of the next batch; None: the data are batches, [updates, B, ...].
    """
    update = dataclasses.replace(
        update, batch_sharding=sharding_lib.batch_sharding(mesh), image_sharding=sharding_lib.image_sharding(mesh)
    )
    key = jax.random.key(config.seed)

    def one_update(state, images, grades):
        with shard_rows(mesh) if mesh.shape[sharding_lib.ROWS] > 1 else contextlib.nullcontext():
            return update_networks(update, state, images, grades, jax.random.fold_in(key, state.step))

    def step(state, *data):
        def body(state, batch):
            return one_update(state, *(gather(state, *data) if gather else batch))

        if updates > 1:
            return jax.lax.scan(body, state, None if gather else data, length=updates)
        state, metrics = body(state, [x[0] for x in data])
        return state, jax.tree.map(lambda x: x[None], metrics)

    state = state_sharding(config, mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state, *(data_sharding or _batch_shardings(mesh))),
        out_shardings=(state, sharding_lib.replicated(mesh)),
        compiler_options=_compiler_options(mesh),
    )


def _batch_shardings(mesh):
    """Shardings of stacked batches: images and grades."""
    image, batch = sharding_lib.image_sharding(mesh), sharding_lib.batch_sharding(mesh)
    return sharding_lib.stacked(image), sharding_lib.stacked(batch)


def _compiler_options(mesh) -> dict[str, str]:
    device = mesh.devices.flat[0]
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return {}
    return {"xla_gpu_enable_command_buffer": COMMAND_BUFFERS}
