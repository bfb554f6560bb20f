"""The step that `train` runs, compiled for devices that need not be there, and what the compiler then says of it."""

import dataclasses
import math
import re
import time

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from idrid_jax.bench import memory as memory_lib
from idrid_jax.bench.program import PHOTOGRAPHS, no_persistent_cache
from idrid_jax.data.cache import Split
from idrid_jax.models import NETWORKS
from idrid_jax.plan import collectives, hlo, traffic
from idrid_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the compiler says of a step; bytes and operations are of one chip, in one update.

    Attributes:
      fits: it found room.
      needed: bytes that the program takes; None where it does not fit and the compiler did not tell.
      memory: the same by kind; empty where it does not fit.
      flops, bytes: operations, and bytes that instructions touch, by its cost analysis.
      main_bytes: bytes of main memory read and written, by the program's text (`traffic`).
      collectives: by kind: count, bytes, wire_bytes (`collectives.summary`).
      loops: exchanges in loops of unknown length, counted once.
      compile_s: seconds for lowering and compiling.
      refusal: what it said where the step does not fit.
    """

    fits: bool
    needed: int | None
    memory: dict[str, int]
    flops: float
    bytes: float
    main_bytes: float
    collectives: dict[str, dict[str, float]]
    loops: int
    compile_s: float
    refusal: str = ""

    @property
    def wire_bytes(self) -> float:
        return sum(kind["wire_bytes"] for kind in self.collectives.values())


# Of XLA: a TPU's compiler then leaves out what takes it minutes for these networks, keeping arrays on the chip and
# searching for the best tiles. Operations and exchanges stay as they are; memory and its traffic are more (measured for
# dcgan28 on one v5e: 101 MB read and written, not 66; for dcgan128 on four: 268 MB taken, not 186).
EFFORTS = {"low": {"optimization_level": 9}, "full": {}}  # 9: XLA's EFFORT_O0


def facts(config: ml_collections.ConfigDict, mesh: Mesh, effort: str = "full") -> Facts:
    """Compiles the step of `config` for `mesh` with an effort of EFFORTS; "full" is what `train` gets.

    Raises UserError where configuration and mesh do not fit together.
    """
    start = time.perf_counter()
    jitted, state, data = train_step.abstract_step(config, mesh, photographs(config))
    try:
        with no_persistent_cache():
            compiled = jitted.lower(state, *data).compile(EFFORTS[effort])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Facts(False, refused(str(error)), {}, 0, 0, 0, {}, 0, time.perf_counter() - start, _line(str(error)))
    seconds = time.perf_counter() - start
    cost = compiled.cost_analysis() or {}
    module = hlo.parse(compiled.as_text())
    exchanges = collectives.read(module, mesh.size)
    return Facts(
        True,
        memory_lib.needed(compiled),
        by_kind(compiled, state, data),
        # The analysis counts a loop's body once; all but the optimizers is in the one over micro-batches
        cost.get("flops", 0.0) * config.accumulate,
        cost.get("bytes accessed", 0.0) * config.accumulate,
        traffic.read(module),
        collectives.summary(exchanges),
        sum(not one.known for one in exchanges),
        seconds,
    )


def photographs(config: ml_collections.ConfigDict) -> Split:
    """IDRiD's training split in shape and number, with no memory behind it: all black, grades in turn."""
    network = NETWORKS[config.network]
    shape = (PHOTOGRAPHS, network.size, network.size, network.channels)
    grades = np.arange(PHOTOGRAPHS, dtype=np.int32) % 5
    return Split(np.broadcast_to(np.uint8(0), shape), grades, grades, tuple(map(str, range(PHOTOGRAPHS))))


def by_kind(compiled: jax.stages.Compiled, state, data) -> dict[str, int]:
    """Bytes of one chip: "state" (parameters, statistics, optimizers), "photographs" (the batch or the resident split),
    "padding" of both in the layouts chosen, "temporaries" (activations, gradients), "results" that take no donated
    argument's place, "code". Their sum is `bench.memory.needed`; empty where the backend does not tell.

    state, data: the step's arguments, as shapes with their shardings.
    """
    told = compiled.memory_analysis()
    if told is None:
        return {}
    share = lambda tree: sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
    rest = told.argument_size_in_bytes - share(state)
    photographs = min(share(data), rest)  # grades that nothing reads are left out of the program
    return {
        "state": share(state),
        "photographs": photographs,
        "padding": rest - photographs,
        "temporaries": told.temp_size_in_bytes,
        "results": told.output_size_in_bytes - told.alias_size_in_bytes,
        "code": told.generated_code_size_in_bytes,
    }


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def refused(message: str) -> int | None:
    """Bytes that a compiler says a program would have needed, when it found no room; None where it does not say.

    "... required for HLO temporaries (1.00T) exceeds available HBM (15.75G)", "Used 20.10G of 15.75G hbm"
    """
    for pattern in (r"\(([\d.]+)([KMGT]?)\) exceeds available", r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"):
        if match := re.search(pattern, message):
            return int(float(match[1]) * _UNITS[match[2]])
    return None


def _line(message: str) -> str:
    return " ".join(message.split())[:300]
