"""What a compiled program needs of a device's memory, what the device has, and the largest batch that fits."""

import os
from collections.abc import Callable

import jax

TRIES = 6  # compilations after the first two


def needed(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of each device that the program holds while it runs, as the compiler has laid them out.

    Arguments, results (those that take a donated argument's place counted once), temporaries and code. None where the
    backend does not tell.
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


def available(devices: int) -> int | None:
    """Bytes that a program may take of each of so many devices; None where nobody knows.

    Of a GPU or TPU what JAX may allocate there, of a CPU an equal share of the memory that the system could give now.
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
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // devices
    return kib * 1024 // devices


def peak(device: jax.Device) -> int | None:
    """Bytes that this process has ever held on the device at once, where the backend counts them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def largest_batch(need: Callable[[int], int], limit: int, multiple: int = 1) -> int:
    """The largest multiple of `multiple` whose `need` in bytes is within `limit`; 0 where none is.

    `need` compiles, so it is asked a few times only: a line through two batch sizes says where the limit is met, and a
    guess that does not fit gives the next line. Memory that does not grow in proportion (another algorithm for a larger
    batch) can leave the answer below the largest, never above it.
    """
    needs = {size: need(size) for size in (multiple, 64 * multiple)}
    if needs[multiple] > limit:
        return 0
    for _ in range(TRIES):
        fits = max(size for size in needs if needs[size] <= limit)
        too_large = [size for size in needs if needs[size] > limit]
        low, high = sorted(needs, key=lambda size: abs(needs[size] - limit))[:2]
        slope = (needs[high] - needs[low]) / (high - low)
        if slope <= 0:
            break
        guess = int(low + (limit - needs[low]) / slope) // multiple * multiple
        guess = min([guess, *(size - multiple for size in too_large)])
        if guess <= fits:
            break
        needs[guess] = need(guess)
    return max(size for size in needs if needs[size] <= limit)
