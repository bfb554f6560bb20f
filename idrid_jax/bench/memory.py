"""Memory of a compiled program and of a device, and the largest batch that fits."""

import dataclasses
import os
from collections.abc import Callable

import jax

MAX_COMPILATIONS = 5  # of the search, after the first
FULL_ENOUGH = 0.9  # share of the memory in use at which the search stops


def program_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Return the bytes that a program holds on each device while it runs; None if the backend does not report them.

    They are arguments, results (a donated argument's place counts once), temporaries and code.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def available_bytes(num_devices: int) -> int | None:
    """Return the bytes that a program can use on each of `num_devices` devices; None if unknown.

    On a GPU or TPU this is what JAX may allocate; on a CPU an equal share of the memory that is free now.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu":
        return None
    try:
        with open("/proc/meminfo") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        if not hasattr(os, "sysconf"):
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // num_devices
    return kib * 1024 // num_devices


def peak_bytes(device: jax.Device) -> int | None:
    """Return the most bytes that this process has held on the device, if the backend counts them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


@dataclasses.dataclass(frozen=True)
class Need:
    """What the compiler reports for one batch size.

    Attributes:
      compiles: False if it found no room.
      bytes: memory of the program; None if not reported.
      fixed_bytes: the part that does not grow with the batch (state, photographs); None if not reported.
    """

    compiles: bool
    bytes: int | None
    fixed_bytes: int | None = None

    def fits(self, limit: int) -> bool:
        return self.compiles and (self.bytes is None or self.bytes <= limit)


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch that compiled and fits, and the smallest that compiled and does not; 0 for none."""

    batch_size: int
    refused: int


def largest_batch(need: Callable[[int], Need], limit: int, *, start: int, multiple: int = 1) -> LargestBatch:
    """Search for the largest multiple of `multiple` that fits `limit` bytes, with few compilations from `start` on.

    need: compiles a batch size and returns its memory. That grows about linearly above a fixed part, so a line through
      the two known points nearest to the limit gives the next guess. A compiler that sees the limit may recompute
      activations instead of refusing, so a guess that fits but leaves room is followed by a larger one.
    """
    first = need(start)
    known: dict[int, tuple[bool, int | None]] = {start: (first.fits(limit), first.bytes)}
    if first.fixed_bytes is not None:
        if first.fixed_bytes > limit:
            return LargestBatch(0, start)
        known[0] = True, first.fixed_bytes
    for _ in range(MAX_COMPILATIONS):
        fits = max((size for size, (ok, _) in known.items() if ok), default=0)
        refused = min((size for size, (ok, _) in known.items() if not ok), default=0)
        if fits and (known[fits][1] or 0) >= FULL_ENOUGH * limit:
            break
        guess = _next_guess(known, limit, multiple)
        if refused and guess >= refused or guess <= fits:  # the line does not help: halve the open range, or double
            guess = (fits + refused) // 2 // multiple * multiple if refused else 2 * fits
        coarse = guess // (8 * multiple) * (8 * multiple)  # compilers fill tiles of eight
        if coarse >= 64 * multiple and coarse > fits:
            guess = coarse
        if guess < multiple or guess in known:
            break
        result = need(guess)
        known[guess] = result.fits(limit), result.bytes
    return LargestBatch(
        max((size for size, (ok, _) in known.items() if ok), default=0),
        min((size for size, (ok, _) in known.items() if not ok), default=0),
    )


def _next_guess(known: dict[int, tuple[bool, int | None]], limit: int, multiple: int) -> int:
    """Return where a line through the two points nearest to the limit meets it; with one point, double or half."""
    points = [(size, needed) for size, (_, needed) in known.items() if needed is not None]
    points.sort(key=lambda point: abs(point[1] - limit))
    if len(points) < 2:
        size = max(known)
        return 2 * size if known[size][0] else size // 2 // multiple * multiple
    (low, low_bytes), (high, high_bytes) = sorted(points[:2])
    slope = (high_bytes - low_bytes) / (high - low)
    return int(low + (limit - low_bytes) / slope) // multiple * multiple if slope > 0 else 0
