"""A run's folder: made, found to be one for all processes, and held, so that no second run writes there."""

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from idrid_jax.errors import UserError
from idrid_jax.training import multihost

LOCK = ".lock"
CHECKPOINTS, UNREADABLE = "checkpoints", "unreadable_checkpoints"
VISIBLE = 30.0  # seconds until what one host wrote is seen by another: network file systems cache folders
UNKNOWN_TO = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # file systems without locks


def saved(workdir: Path) -> bool:
    """Whether there is a finished checkpoint; Orbax is not needed to tell."""
    return any(path.name.isdigit() for path in (Path(workdir) / CHECKPOINTS).glob("*"))


def came_far(workdir: Path) -> bool:
    """Whether it holds more than a start that failed: what a snapshot left, or an evaluation, checkpoints or not."""
    left = [*Path(workdir).glob("evaluation*.json"), *Path(workdir).glob(UNREADABLE)]
    grids = [*Path(workdir).glob("fakes_*")]  # the first is of the start
    return saved(workdir) or bool(left) or len(grids) > 1


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Within the block the folder is this run's: process 0 holds the lock, which the kernel lets go of when it dies.

    Reading it stays allowed. Raises UserError, on all processes, where it cannot be written, another run is there, or a
    process does not see what process 0 wrote in it.
    """
    with contextlib.ExitStack() as lock:
        claim = multihost.run_on_first(lambda: lock.enter_context(_locked(workdir)))
        multihost.run_on_each(lambda: _check_seen(workdir, claim) if multihost.process_index() else None)
        yield


@contextlib.contextmanager
def _locked(workdir) -> Iterator[str]:
    claim = json.dumps({
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    })  # fmt: skip
    path = workdir / LOCK
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(workdir, path)
        os.ftruncate(handle, 0)
        os.write(handle, claim.encode())
    except OSError as error:
        raise UserError(f"--workdir {workdir}: cannot be written ({error.strerror}): choose another") from error
    try:
        yield claim
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is still locked: see `_open_locked`
        os.close(handle)


def _open_locked(workdir, path) -> int:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise UserError(f"--workdir {workdir}: {_holder(path)} trains there: stop it, or choose another") from error
        except OSError as error:
            if error.errno not in UNKNOWN_TO:
                raise
            print(f"{workdir}: its file system knows no locks: nothing keeps a second run from it", file=sys.stderr)
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # the run before had it and removed it meanwhile


def _holder(path) -> str:
    try:
        claim = json.loads(path.read_text())
        return f"another run (host {claim['host']}, pid {claim['pid']}, since {claim['since']})"
    except (OSError, ValueError, KeyError):
        return "another run"


def _check_seen(workdir, claim) -> None:
    deadline = time.monotonic() + VISIBLE
    while True:
        with contextlib.suppress(OSError):
            os.listdir(workdir)  # asks a network file system anew
            if (workdir / LOCK).read_text() == claim:
                return
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir {workdir} on host {socket.gethostname()} is not process 0's folder: choose one that all "
                "processes share"
            )
        time.sleep(0.2)
