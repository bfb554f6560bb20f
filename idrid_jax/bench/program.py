"""The step as `train` makes it, on random images, for what the compiler and the clock say of it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from idrid_jax.bench import memory
from idrid_jax.data.cache import Split
from idrid_jax.models import NETWORKS, build_networks, convolution
from idrid_jax.training import build, train_step
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.state import TrainState

PHOTOGRAPHS = 406  # in IDRiD's training split, after the audit


@dataclasses.dataclass(frozen=True)
class Program:
    """What `train_step.compile_step` gives, and how it begins."""

    config: ml_collections.ConfigDict
    step: train_step.Step
    init: Callable[[jax.Array], TrainState]
    mesh: jax.sharding.Mesh

    def start(self) -> TrainState:
        return build.fresh_state(self.config, self.init, self.mesh)

    def lower(self) -> jax.stages.Lowered:
        """No state is made for it: a batch that does not fit can be lowered too."""
        return self.step.jitted.lower(build.abstract_state(self.config, self.init, self.mesh), *self.step.data())

    def compile(self) -> tuple[jax.stages.Compiled, float]:
        """The executable that `step` then runs, and the seconds that lowering and compiling took."""
        start = time.perf_counter()
        return self.lower().compile(), time.perf_counter() - start


def make(config: ml_collections.ConfigDict) -> Program:
    """The program of a configuration, with images drawn at random in device memory.

    Raises UserError where the devices cannot share the batch.
    """
    network = NETWORKS[config.network]
    mesh = mesh_lib.of_config(config, network.size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PHOTOGRAPHS, network.size, network.size, network.channels), np.uint8)
    grades = np.arange(PHOTOGRAPHS, dtype=np.int32) % 5
    split = Split(images, grades, np.zeros_like(grades), tuple(map(str, range(PHOTOGRAPHS))))
    update, init = build.make_update(config, *build_networks(config))
    return Program(config, train_step.compile_step(config, update, mesh, split, 0), init, mesh)


def model_flops(config: ml_collections.ConfigDict) -> float | None:
    """FLOPs of one update of the whole batch, a multiplication and an addition being two.

    By XLA's cost analysis of the update lowered with plain convolutions of lax, before any optimization: our own
    lowering of a convolution may need fewer multiplications, and differs by platform. Convolutions count what they
    reach: no padding, no zeros between the rows of a dilated one. It is lowered for a CPU, since JAX analyses what is
    not compiled there and on TPUs alone. None where JAX may not use the CPU (JAX_PLATFORMS).
    """
    try:
        cpu = jax.local_devices(backend="cpu")
    except RuntimeError:
        return None
    one = config.copy_and_resolve_references()
    one.mesh.rows, one.mesh.fsdp, one.dispatch_steps, one.accumulate = 1, False, 1, 1
    mesh = mesh_lib.make_mesh(1, devices=cpu[:1])
    with convolution.lowering("native"):
        jitted, state, data = train_step.abstract_step(one, mesh)
        return jitted.lower(state, *data).cost_analysis()["flops"]


def bytes_needed(config: ml_collections.ConfigDict) -> int:
    """`memory.needed` of the program; what cannot be compiled for want of memory needs more than any device has."""
    try:
        compiled, _ = make(config).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return 2**62
    return memory.needed(compiled)


@contextlib.contextmanager
def no_persistent_cache() -> Iterator[None]:
    """Compilations within are compilations, whatever lies on disk."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
