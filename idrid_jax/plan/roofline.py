"""The least time that a step can take on a chip, from published peaks: arithmetic, nothing measured.

Compute, memory and interconnect each need their operations or bytes over the chip's peak. A step takes at least the
longest of the three, if the others hide behind it wholly, and their sum if nothing overlaps. Real steps take more, for
what this leaves out:

- No chip reaches its peaks. Matrix units idle where channels are few (3 of an image, 64 of a layer against 128 or 256
  lanes); element-wise work, BatchNorm's sums and Adam run on the vector unit, whose rate is far lower.
- Every exchange has a latency of some microseconds for each hop, and a step's exchanges wait for one another.
- Memory's bytes are those of the compiled program (`traffic`), at low effort more than at full; tiles' padding is not
  in them.
- Loading photographs, logging, snapshots and the host's dispatch.

The compute peak is bfloat16's also for float32 networks: JAX multiplies float32 on TPUs in one pass of bfloat16 unless
told otherwise (jax.default_matmul_precision).
"""

import dataclasses

from idrid_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step by each peak."""

    compute_s: float
    memory_s: float
    interconnect_s: float

    @property
    def least_s(self) -> float:
        """If the three overlap wholly."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def serial_s(self) -> float:
        """If none overlaps."""
        return self.compute_s + self.memory_s + self.interconnect_s

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        named = {"compute": self.compute_s, "memory": self.memory_s, "interconnect": self.interconnect_s}
        return max(named, key=named.get)


def of(topology: Topology, *, flops: float, memory_bytes: float, wire_bytes: float) -> Roofline:
    """From what one chip does in a step: operations, bytes of HBM read and written, bytes sent to other chips."""
    return Roofline(
        flops / topology.chip.flops,
        memory_bytes / topology.chip.memory_rate,
        wire_bytes / topology.wire_rate if wire_bytes else 0.0,
    )
