"""What every benchmark prints: on stdout one JSON line per measured thing, and at the end a table for people."""

import json
import os
import platform
import sys
from collections.abc import Sequence


def machine() -> dict[str, object]:
    """The device, the threads that this process may use, and the versions: part of every figure."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "threads": threads(),
        "processor": _processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def threads() -> int:
    """Processors that this process may run on, which is what XLA and the peers use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def emit(row: dict[str, object]) -> None:
    """One measured thing, at once, so that a run that is cut short has shown what it had."""
    print(json.dumps(row), flush=True)


def note(text: str) -> None:
    """What is being done, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns: the first to the left, the others to the right; None is "-"."""
    cells = [[str(cell) if cell is not None else "-" for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    align = lambda row: [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
    return "\n".join("  ".join(align(row)).rstrip() for row in cells)
