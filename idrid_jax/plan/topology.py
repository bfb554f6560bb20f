"""TPU slices: published peaks of their chips, their links, a roofline, and devices to compile for.

Sources, read November 2026. Peaks and shapes: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("key specifications",
"configurations"). Axes that close to a ring: for v5p the same page (whole cubes of 4 x 4 x 4 and more), for v5e and v6e
the table of slices in AI-Hypercomputer/maxtext, MaxText/accelerator_to_spec_map.py (an axis of 16).
"""

import dataclasses
import importlib.util
import math
import os
import re
from importlib import metadata

import jax

from idrid_jax.errors import UserError, suggest_name

EXTRA = "tpu-plan"  # the optional dependency that installs libtpu


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip; figures are per chip.

    Attributes:
      flops_per_s: bfloat16 operations per second; a multiplication and an addition are two.
      memory_bytes: HBM that a program can use, from the refusals of libtpu 0.0.42: a little less than the published
        capacity (16, 95 and 32 GB).
      memory_bytes_per_s: HBM bandwidth.
      link_bytes_per_s: bandwidth of one link to a neighbor in one direction: the published bidirectional bandwidth of
        the chip, divided by its number of links and by two.
      min_ring_length: shortest axis whose ends are linked.
      shapes: slices on offer.
    """

    name: str
    flops_per_s: float
    memory_bytes: int
    memory_bytes_per_s: float
    link_bytes_per_s: float
    min_ring_length: int
    shapes: tuple[str, ...]


_GIB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    *("16x16x16", "16x16x24"),
)  # 1x1x1 is not on offer; it is one of the four chips of a host, for comparison
CHIPS = {
    "v5e": Chip("v5e", 197e12, int(15.75 * _GIB), 819e9, 400e9 / 4 / 2, 16, _FLAT),
    "v5p": Chip("v5p", 459e12, int(95.74 * _GIB), 2765e9, 1200e9 / 6 / 2, 4, _CUBES),
    "v6e": Chip("v6e", 918e12, int(31.25 * _GIB), 1638e9, 800e9 / 4 / 2, 16, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind in a grid of `shape`."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def rings(self) -> tuple[bool, ...]:
        """For each axis, whether its ends are linked. v5p links all three axes of whole cubes, or none."""
        if len(self.shape) == 3:
            return (min(self.shape) >= self.chip.min_ring_length,) * 3
        return tuple(length >= self.chip.min_ring_length for length in self.shape)

    @property
    def interconnect_bytes_per_s(self) -> float:
        """Bytes per second that each chip can send to its neighbors on all links together; 0 for a single chip.

        A ring axis gives two links per chip. Another axis gives what a ring laid along it and back carries, one link
        per chip, because its end chips have only one.
        """
        links = sum((2 if ring else 1) for length, ring in zip(self.shape, self.rings) if length > 1)
        return links * self.chip.link_bytes_per_s


def parse_topology(name: str) -> Topology:
    """Return the slice that a name such as "v5e:16x16" describes. Raises UserError for an unknown one."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    kind, shape = match.groups() if match else (re.split(r"\W", name)[0], "")
    if kind not in CHIPS:
        examples = [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.shapes[1::3]]
        raise UserError(
            f"--topology {name}: unknown chip; choose one of {', '.join(CHIPS)}, in a slice such as "
            f"{', '.join(examples)}"
        )
    chip = CHIPS[kind]
    if shape not in chip.shapes:
        known = ", ".join(f"{kind}:{shape}" for shape in chip.shapes)
        raise UserError(f"--topology {name}: {kind} has no such slice; choose one of {known}")
    return Topology(name, chip, tuple(map(int, shape.split("x"))))


def topology_with_chips(kind: str, num_chips: int) -> Topology:
    """Return the slice of `num_chips` chips. Raises UserError for an unknown kind or a size that is not on offer."""
    if kind not in CHIPS:
        raise UserError(f"--scaling {kind}: unknown chip; {suggest_name(kind, CHIPS)}")
    slices = [parse_topology(f"{kind}:{shape}") for shape in CHIPS[kind].shapes]
    for topology in slices:
        if topology.num_chips == num_chips:
            return topology
    sizes = ", ".join(str(topology.num_chips) for topology in slices)
    raise UserError(f"--chips {num_chips}: {kind} has no such slice; choose from {sizes}")


def compiler_version() -> str:
    """Return the name and version of the TPU compiler. Raises UserError if it is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs libtpu, the TPU compiler (a wheel for Linux on x86-64): run bash launch/install.sh "
            f"{EXTRA}, or plan for simulated devices with --devices"
        )
    return f"libtpu {metadata.version('libtpu')}"


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Return the chips of a slice as devices that can be compiled for but not run on.

    Raises UserError if libtpu is not installed or does not know the slice.
    """
    version = compiler_version()
    # Set before libtpu is loaded: otherwise it queries the network for this machine's TPU and refuses a second process
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-256"),  # any known type; the topology below is what counts
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_LOG_DIR", "disabled"),
    ):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    host = (2, 2, 1) if topology.num_chips > 1 else (1, 1, 1)
    try:
        description = topologies.get_topology_desc(
            topology.name, "tpu", chips_per_host_bounds=host, wrap=(*topology.rings, False)[:3]
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology.name}: {version} does not know this slice ({reason})") from error
    return list(description.devices)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one update on one chip at its published peaks: arithmetic on the compiler's figures, not a
    measurement.

    compute_s: operations over the bfloat16 peak, also for float32 networks, because JAX multiplies float32 on TPUs in
      one bfloat16 pass by default (jax.default_matmul_precision).
    memory_s: `bytes_accessed` of the compiler's cost analysis over the HBM bandwidth. The analysis counts every array
      that an instruction reads or writes, also those that stay on the chip, so this is an upper estimate.
    interconnect_s: bytes sent to other chips over the links' bandwidth, without latencies.
    """

    compute_s: float
    memory_s: float
    interconnect_s: float

    @property
    def overlapped_s(self) -> float:
        """The longest of the three, which hides the others if they overlap completely."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def serial_s(self) -> float:
        """Their sum, if nothing overlaps."""
        return self.compute_s + self.memory_s + self.interconnect_s

    @property
    def bound(self) -> str:
        """Name of the longest of the three."""
        times = {"compute": self.compute_s, "memory": self.memory_s, "interconnect": self.interconnect_s}
        return max(times, key=times.get)


def roofline(topology: Topology, *, flops: float, memory_bytes: float, interconnect_bytes: float) -> Roofline:
    """Return the roofline of a chip that does so many operations and moves so many bytes in an update."""
    return Roofline(
        flops / topology.chip.flops_per_s,
        memory_bytes / topology.chip.memory_bytes_per_s,
        interconnect_bytes / topology.interconnect_bytes_per_s if interconnect_bytes else 0.0,
    )
