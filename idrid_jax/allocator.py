"""glibc's malloc, told to keep what it has.

XLA on CPU takes a step's working memory from malloc and gives it back at the end of the step. By default glibc maps
such blocks anew each time, and the kernel clears every page as it is first touched: a sixth of a step's time (156,000
page faults a step at `dcgan64`, batch 64). The process then keeps its largest step's memory until it ends.
"""

import ctypes
import sys

# mallopt(3): its numbers are part of glibc's interface
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> bool:
    """Whether it could be done: not without glibc. Call it before anything starts threads, which get arenas of their
    own."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
