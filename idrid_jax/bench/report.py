"""Output of the benchmarks: one JSON line per measurement on stdout, then a table; progress on stderr."""

import json
import os
import platform
import sys
from collections.abc import Sequence


def describe_machine() -> dict[str, object]:
    """Return device, threads, processor and versions; every JSON line includes them."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "threads": num_threads(),
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def num_threads() -> int:
    """Return how many processors this process may use, which is what XLA and PyTorch use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_row(row: dict[str, object]) -> None:
    """Print a JSON line as soon as it is measured, so that an interrupted run has printed what it has."""
    print(json.dumps(row), flush=True)


def log(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns: the first to the left, the others to the right; None is printed as "-"."""
    cells = [[str(cell) if cell is not None else "-" for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)
