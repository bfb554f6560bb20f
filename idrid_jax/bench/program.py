"""The train step on random images, for timing and for the compiler's figures."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from idrid_jax.bench import memory
from idrid_jax.data.cache import Split
from idrid_jax.models import NETWORKS, convolution
from idrid_jax.training import sharding, train_step
from idrid_jax.training.state import TrainState, abstract_state, fresh_state

NUM_PHOTOGRAPHS = 406  # in IDRiD's training split, after the audit


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The step that `train` runs for a configuration, and the state it starts from."""

    config: ml_collections.ConfigDict
    step: train_step.TrainStep
    mesh: jax.sharding.Mesh

    def initial_state(self) -> TrainState:
        return fresh_state(self.config, self.mesh)

    def compile(self) -> tuple[jax.stages.Compiled, float]:
        """Return the executable that `step` runs, and the seconds for lowering and compiling.

        No state is allocated, so a batch that does not fit can be compiled too.
        """
        start = time.perf_counter()
        state = abstract_state(self.config, self.mesh)
        return self.step.jitted.lower(state, *self.step.next_data()).compile(), time.perf_counter() - start


def make_program(config: ml_collections.ConfigDict) -> TrainProgram:
    """Return the train step of a configuration on random images in device memory.

    Raises UserError if the devices cannot share the batch.
    """
    network = NETWORKS[config.network]
    mesh = sharding.mesh_from_config(config, network.size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_PHOTOGRAPHS, network.size, network.size, network.channels), np.uint8)
    grades = np.arange(NUM_PHOTOGRAPHS, dtype=np.int32) % 5
    split = Split(images, grades, np.zeros_like(grades), tuple(map(str, range(NUM_PHOTOGRAPHS))))
    return TrainProgram(config, train_step.make_train_step(config, mesh, split, 0), mesh)


def model_flops(config: ml_collections.ConfigDict) -> float | None:
    """Return the FLOPs of one update of the whole batch; a multiplication and an addition are two.

    They are XLA's cost analysis of the unoptimized update with native convolutions, so they do not depend on the
    platform or on our convolution lowerings, which need fewer multiplications. Padding and the zeros of dilated
    convolutions are not counted. The update is lowered for a CPU, because JAX analyses uncompiled programs there only
    (and on TPUs). None if JAX may not use the CPU (JAX_PLATFORMS).
    """
    try:
        cpu = jax.local_devices(backend="cpu")
    except RuntimeError:
        return None
    single = config.copy_and_resolve_references()
    single.mesh.rows, single.mesh.fsdp, single.dispatch_steps = 1, False, 1
    mesh = sharding.make_mesh(1, devices=cpu[:1])
    with convolution.lowering("native"):
        jitted, state, data = train_step.abstract_train_step(single, mesh)
        return jitted.lower(state, *data).cost_analysis()["flops"]


def memory_need(config: ml_collections.ConfigDict) -> memory.Need:
    """Compile the train step of `config` and return its memory."""
    try:
        compiled, _ = make_program(config).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return memory.Need(False, None)
    needed = memory.program_bytes(compiled)
    fixed = None if needed is None else needed - compiled.memory_analysis().temp_size_in_bytes
    return memory.Need(True, needed, fixed)


@contextlib.contextmanager
def no_persistent_cache() -> Iterator[None]:
    """Disable JAX's compilation cache on disk within the block, so that compile times are real."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
