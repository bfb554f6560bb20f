"""Process-wide settings, set by `cli` alone: memory allocator, BLAS threads, JAX's compilation cache and platforms."""

import contextlib
import ctypes
import glob
import os
import platform
import sys
import zlib
from pathlib import Path

_CPU_FIELDS = (
    "vendor_id",
    "model name",
    "flags",
    "CPU part",
    "Features",
)  # of /proc/cpuinfo: what code is compiled for

# Device files of NVIDIA and AMD GPUs, of GPUs under WSL, and of TPUs
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg", "/dev/accel*", "/dev/vfio/[0-9]*")

# mallopt(3): the numbers are part of glibc's interface
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory; return whether that was possible (only with glibc).

    XLA on CPU allocates a step's working memory and frees it at the end of the step. By default glibc maps such blocks
    again each time and the kernel clears every page: a sixth of a step's time (156,000 page faults a step for
    `dcgan64` at batch 64). The process then keeps the memory of its largest step until it ends. Call it before any
    thread starts, because threads get arenas of their own.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def has_accelerator() -> bool:
    """Return whether JAX will probably run on a GPU or TPU, without importing JAX.

    JAX_PLATFORMS decides if it is set, otherwise the machine's device files.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return not platforms.startswith("cpu")
    return any(glob.glob(pattern) for pattern in _ACCELERATORS)


def missing_platforms() -> str:
    """Return JAX_PLATFORMS if JAX cannot initialize the platforms that it names, otherwise an empty string."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not platforms or "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError):  # JAX 0.10 asserts that a platform was found
        return platforms
    return ""


def limit_blas_threads() -> None:
    """Give NumPy's matrix products one thread unless the user has set another number; call it before NumPy is imported.

    The products are small here: more threads make `evaluate` a third slower, and ten times slower on a busy machine.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def enable_compilation_cache() -> None:
    """Enable JAX's compilation cache on disk by environment variables; call it before JAX is imported.

    Variables that are set already stay. The folder is $XDG_CACHE_HOME/idrid_jax/jax/PROCESSOR (by default below
    ~/.cache), or JAX_COMPILATION_CACHE_DIR; JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. There is no cache
    where the folder cannot be written. Several processes may share it.
    """
    if "jax" in sys.modules:
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
            folder = folder / "idrid_jax" / "jax" / _processor()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there can run code as the user
            if os.access(folder, os.W_OK | os.X_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # JAX's default minimum of one second would skip most programs of a start
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _processor() -> str:
    """Name the processor: a home may be shared by unlike machines, and JAX's cache key does not distinguish them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        features = "\n".join(line for line in lines if line.startswith(_CPU_FIELDS))
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
