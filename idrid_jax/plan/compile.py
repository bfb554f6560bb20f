"""Compile the train step for devices that need not exist, and read memory, FLOPs and collectives from the result."""

import dataclasses
import math
import re
import time

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from idrid_jax.bench import memory as memory_lib
from idrid_jax.bench.program import NUM_PHOTOGRAPHS, no_persistent_cache
from idrid_jax.data.cache import Split
from idrid_jax.models import NETWORKS
from idrid_jax.plan.collectives import summarize_collectives
from idrid_jax.training import train_step

# Compiler effort -> compiler options. At low effort (9 is XLA's EFFORT_O0) a TPU's compiler skips what takes it minutes
# for these networks: keeping arrays on the chip and searching for the best tiles. Operations and collectives stay as
# they are; memory and its traffic are higher (dcgan128 on four v5e: 268 MB allocated instead of 186).
EFFORTS = {"low": {"optimization_level": 9}, "full": {}}


@dataclasses.dataclass(frozen=True)
class CompiledStats:
    """The compiler's figures for a train step; bytes and operations are per device and update.

    Attributes:
      fits: whether the compiler found room for the program.
      memory_bytes: what the program allocates; None where the compiler does not report it.
      memory_by_kind: the same by kind (`memory_by_kind`); empty where the program does not fit.
      flops, bytes_accessed: from the compiler's cost analysis.
      collectives: kind -> "count", "bytes", "interconnect_bytes" (`collectives.summarize_collectives`).
      collectives_in_unknown_loops: collectives in loops of unknown length, which are counted once.
      compile_s: seconds for lowering and compiling.
      refusal: the compiler's message where the program does not fit.
    """

    fits: bool
    memory_bytes: int | None
    memory_by_kind: dict[str, int]
    flops: float
    bytes_accessed: float
    collectives: dict[str, dict[str, float]]
    collectives_in_unknown_loops: int
    compile_s: float
    refusal: str = ""

    @property
    def interconnect_bytes(self) -> float:
        return sum(kind["interconnect_bytes"] for kind in self.collectives.values())


def compile_stats(config: ml_collections.ConfigDict, mesh: Mesh, effort: str = "full") -> CompiledStats:
    """Compile the train step of `config` for `mesh` and return its figures.

    effort: a key of EFFORTS; "full" is what `train` uses.
    """
    start = time.perf_counter()
    jitted, state, data = train_step.abstract_train_step(config, mesh, placeholder_split(config))
    try:
        with no_persistent_cache():
            compiled = jitted.lower(state, *data).compile(EFFORTS[effort])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = " ".join(str(error).split())[:300]
        seconds = time.perf_counter() - start
        return CompiledStats(False, requested_bytes(str(error)), {}, 0, 0, {}, 0, seconds, message)
    seconds = time.perf_counter() - start
    cost = compiled.cost_analysis() or {}
    collectives, in_unknown_loops = summarize_collectives(compiled.as_text(), mesh.size)
    return CompiledStats(
        fits=True,
        memory_bytes=memory_lib.program_bytes(compiled),
        memory_by_kind=memory_by_kind(compiled, state, data),
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        collectives=collectives,
        collectives_in_unknown_loops=in_unknown_loops,
        compile_s=seconds,
    )


def placeholder_split(config: ml_collections.ConfigDict) -> Split:
    """Return black images in the shape and number of IDRiD's training split, which occupy no memory."""
    network = NETWORKS[config.network]
    shape = (NUM_PHOTOGRAPHS, network.size, network.size, network.channels)
    grades = np.arange(NUM_PHOTOGRAPHS, dtype=np.int32) % 5
    return Split(np.broadcast_to(np.uint8(0), shape), grades, grades, tuple(map(str, range(NUM_PHOTOGRAPHS))))


def memory_by_kind(compiled: jax.stages.Compiled, state, data) -> dict[str, int]:
    """Return the bytes that a program allocates on each device, by kind; they add up to `bench.memory.program_bytes`.

    Kinds: "state" (parameters, statistics, optimizers), "photographs" (the batch or the resident split), "padding" (of
    both, in the compiler's layouts), "temporaries" (activations, gradients), "results" (beyond donated arguments),
    "code". Empty where the backend reports no memory.

    state, data: the step's arguments, as shapes with shardings.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {}
    state_bytes = _bytes_per_device(state)
    other = analysis.argument_size_in_bytes - state_bytes
    photographs = min(_bytes_per_device(data), other)  # the program drops grades that nothing reads
    return {
        "state": state_bytes,
        "photographs": photographs,
        "padding": other - photographs,
        "temporaries": analysis.temp_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }


def _bytes_per_device(tree) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def requested_bytes(message: str) -> int | None:
    """Return the bytes that a program would need, from the compiler's out-of-memory message; None if it names none.

    Two forms: "... required for HLO temporaries (1.00T) exceeds available HBM (15.75G)", "Used 20.10G of 15.75G hbm".
    """
    for pattern in (r"\(([\d.]+)([KMGT]?)\) exceeds available", r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"):
        if match := re.search(pattern, message):
            return int(float(match[1]) * _UNITS[match[2]])
    return None
