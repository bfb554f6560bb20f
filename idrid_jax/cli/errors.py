"""One line and an exit status for an error that the user can mend."""

import errno
import os

from absl import flags

from idrid_jax import runtime
from idrid_jax.errors import UserError

# Errors of the file system that concern a path or disk of the user's choice
USER_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


def explain(error: BaseException, values: flags.FlagValues) -> tuple[str, int] | None:
    """Return a line for the user and the exit status, or None for a bug, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.errno in USER_ERRORS:
        paths = [values[name].value for name in ("out", "workdir", "data_dir") if name in values]
        path = error.filename or next(iter(paths), "the disk")
        path = path[0] if isinstance(path, list) else path  # of a flag that is given several times
        return f"{path}: {os.strerror(error.errno)}; make room or choose another place", 2
    if platforms := runtime.missing_platforms():
        return f"JAX_PLATFORMS={platforms}: JAX finds no such device here; unset it, or set it to cpu", 2
    return None
