"""Folders and files that appear completely or not at all, even if a process is killed or two write the same."""

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from idrid_jax.errors import UserError

_PREFIX = ".partial-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABANDONED_SECONDS = 24 * 3600  # age of a folder of another machine, whose processes cannot be queried from here


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """Yield a new temporary folder in `parent`, on the same file system; remove it and its content at the end.

    Its name begins with ".partial-", which readers ignore. `publish` moves finished results to their final place.
    Folders of killed processes are removed first. Raises UserError if `parent` cannot be written or the disk is full,
    also within the block.
    """
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = parent / f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> bool:
    """Move a finished folder to `target` in one step, after its files have been flushed to disk.

    Returns False, and leaves `folder` where it is, if another process has made `target` first.
    """
    for path in folder.rglob("*"):
        if not path.is_dir():
            _sync(path)
    _sync(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, target)
    except OSError:
        if target.is_dir():
            return False
        raise
    _sync(target.parent)
    return True


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` when the block ends; if the block raises, nothing is left.

    Raises UserError if `out` exists and is not an empty folder, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; choose another")
    with partial_folder(out.absolute().parent) as partial:
        folder = partial / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        if not publish(folder, out):
            raise UserError(f"--out {out}: another process has written it in the meantime; choose another")


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file in one step. Raises UserError if it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write or replace a binary file in one step. Raises UserError if it cannot be written.

    flush: wait until the file is on the disk, so that it also survives a crash of the machine.
    """
    with partial_folder(path.parent) as folder:
        (folder / path.name).write_bytes(content)
        if flush:
            _sync(folder / path.name)
        os.replace(folder / path.name, path)
        if flush:
            _sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block, which writes under `path`, into a UserError."""
    try:
        yield
    except OSError as error:
        advice = "free some space or choose another folder" if error.errno in FULL else "choose another folder"
        raise UserError(f"cannot write under {path}: {error.strerror or error}; {advice}") from error


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        host, _, rest = folder.name.removeprefix(_PREFIX).rpartition("-")[0].rpartition("-")
        try:
            if host == socket.gethostname():
                abandoned = not _alive(int(rest))
            else:
                abandoned = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
        except (OSError, ValueError):  # removed in the meantime, or not a folder of ours
            continue
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
