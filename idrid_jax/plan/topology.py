"""TPU slices by name: their chips' published peaks, their links, and devices to compile for that need not be there.

Sources, read November 2026. Peaks and shapes: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("key specifications",
"configurations"). Which axes of a slice close to a ring: for v5p the same page (whole cubes of 4 x 4 x 4 and more), for
v5e and v6e the table of slices in AI-Hypercomputer/maxtext, MaxText/accelerator_to_spec_map.py (an axis of 16). What a
program may take of a chip's memory is less than the published capacity; the compiler tells it where it refuses one.
"""

import dataclasses
import importlib.util
import math
import os
import re
from importlib import metadata

import jax

from idrid_jax.errors import UserError, suggest_name

EXTRA = "tpu-plan"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip; figures are of a whole chip.

    Attributes:
      flops: bfloat16 operations per second, a multiplication and an addition being two.
      memory: bytes of HBM that a program may take, by libtpu 0.0.42's refusals (published: `capacity`).
      memory_rate: HBM bytes per second.
      ports: links to neighbours.
      link_rate: bytes per second that one link carries in one direction: a port's half of the published bidirectional
        bandwidth.
      ring_axis: the shortest axis that closes to a ring.
      shapes: slices on offer.
    """

    name: str
    flops: float
    capacity: str
    memory: int
    memory_rate: float
    ports: int
    link_rate: float
    ring_axis: int
    shapes: tuple[str, ...]


_GIB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    *("16x16x16", "16x16x24"),
)  # 1x1x1 is not on offer alone; it is one chip of a host's four, for comparison
CHIPS = {
    "v5e": Chip("v5e", 197e12, "16 GB", int(15.75 * _GIB), 819e9, 4, 400e9 / 4 / 2, 16, _FLAT),
    "v5p": Chip("v5p", 459e12, "95 GB", int(95.74 * _GIB), 2765e9, 6, 1200e9 / 6 / 2, 4, _CUBES),
    "v6e": Chip("v6e", 918e12, "32 GB", int(31.25 * _GIB), 1638e9, 4, 800e9 / 4 / 2, 16, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: so many chips of one kind in a grid."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rings(self) -> tuple[bool, ...]:
        """For each axis, whether its ends are linked. v5p closes all three axes of whole cubes, or none."""
        if len(self.shape) == 3:
            return (min(self.shape) >= self.chip.ring_axis,) * 3
        return tuple(length >= self.chip.ring_axis for length in self.shape)

    @property
    def wire_rate(self) -> float:
        """Bytes per second that each chip can send to its neighbours, on all links at once; 0 for a single chip.

        An axis that closes to a ring gives two links a chip. One that does not gives what a ring laid along it and back
        carries, one link a chip: its end chips have no more.
        """
        links = sum((2 if ring else 1) for length, ring in zip(self.shape, self.rings) if length > 1)
        return links * self.chip.link_rate


def parse(name: str) -> Topology:
    """ "v5e:16x16" -> the slice. Raises UserError, with the known ones, for another."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    kind, shape = match.groups() if match else (re.split(r"\W", name)[0], "")
    if kind not in CHIPS:
        known = [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.shapes[1::3]]
        raise UserError(
            f"--topology {name}: no such chip; there are {', '.join(CHIPS)}, as slices such as {', '.join(known)}"
        )
    chip = CHIPS[kind]
    if shape not in chip.shapes:
        known = ", ".join(f"{kind}:{shape}" for shape in chip.shapes)
        raise UserError(f"--topology {name}: no such slice of {kind}; there are {known}")
    return Topology(name, chip, tuple(map(int, shape.split("x"))))


def of_size(kind: str, chips: int) -> Topology:
    """The slice of so many chips. Raises UserError for an unknown kind or a size that is not on offer."""
    if kind not in CHIPS:
        raise UserError(f"--scaling {kind}: no such chip; {suggest_name(kind, CHIPS)}")
    for shape in CHIPS[kind].shapes:
        topology = parse(f"{kind}:{shape}")
        if topology.size == chips:
            return topology
    sizes = ", ".join(str(parse(f"{kind}:{shape}").size) for shape in CHIPS[kind].shapes)
    raise UserError(f"--chips {chips}: there is no such slice of {kind}; there are those of {sizes}")


def compiler() -> str:
    """The TPU compiler's name and version. Raises UserError where it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology needs libtpu, the TPU compiler, a wheel for Linux on x86-64: bash launch/install.sh {EXTRA}"
        )
    return f"libtpu {metadata.version('libtpu')}"


def devices(topology: Topology) -> list[jax.Device]:
    """The slice's chips, to compile for; nothing can run on them.

    Raises UserError where libtpu is not installed or does not know the slice.
    """
    compiler()
    # Set before libtpu is loaded: it would else ask for the machine's TPU, by network, and refuse a second process
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-256"),  # of no consequence, but one must be named
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_LOG_DIR", "disabled"),
    ):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    host = (2, 2, 1) if topology.size > 1 else (1, 1, 1)
    try:
        described = topologies.get_topology_desc(
            topology.name, "tpu", chips_per_host_bounds=host, wrap=(*topology.rings, False)[:3]
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology.name}: {compiler()} does not know it ({reason})") from error
    return list(described.devices)
