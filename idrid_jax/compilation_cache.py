"""JAX's compilation cache on disk, on by default: a second start reads its programs instead of compiling them."""

import contextlib
import os
import platform
import sys
import zlib
from pathlib import Path

FIELDS = ("vendor_id", "model name", "flags", "CPU part", "Features")  # of /proc/cpuinfo: what programs are made for


def switch_on() -> None:
    """Sets JAX's environment variables that are not set, before JAX is imported; afterwards it changes nothing.

    The folder is $XDG_CACHE_HOME/idrid_jax/jax/PROCESSOR, by default under ~/.cache, or the one that
    JAX_COMPILATION_CACHE_DIR names; JAX_ENABLE_COMPILATION_CACHE=false turns it off. Where the folder cannot be
    written there is no cache. Several processes may share it; programs of other code or versions have other keys.
    """
    if "jax" in sys.modules:
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
            folder = folder / "idrid_jax" / "jax" / _processor()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can run code as the user
            if os.access(folder, os.W_OK | os.X_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # JAX's own limit of a second would leave out most of what a start compiles
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _processor() -> str:
    """A name for processors that run the same programs: a home may be shared by unlike machines, and JAX's own key
    does not tell them apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told = "\n".join(line for line in lines if line.startswith(FIELDS))
    except OSError:
        told = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(told.encode()):08x}"
