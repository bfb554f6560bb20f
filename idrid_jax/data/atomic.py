"""Folders and files that are there whole or not at all, whoever is killed and whoever else writes the same."""

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
_ABANDONED_SECONDS = 24 * 3600  # of a folder whose owner runs on another machine, where we cannot ask for it


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to write in, on the same file system; whatever is left in it at the end is removed.

    Its name begins with ".partial-", which no reader looks at. Folders that killed processes left are removed on the
    way in. `publish` moves what is finished to where it is read. Raises UserError where `parent` cannot be written or
    the disk is full, also from within the block.
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
    """Moves a finished folder to `target` in one step, its files on the disk before its name is.

    Returns False, and leaves `folder` alone, where another process has put a `target` there first.
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
    """A folder to write in, which is `out` once the block ends well, and nothing where it raises.

    Raises UserError where `out` exists and is not an empty folder, or cannot be written.
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
            raise UserError(f"--out {out}: another process has written it meanwhile; choose another")


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a file in one step. Raises UserError where it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same."""
    with partial_folder(path.parent) as folder:
        (folder / path.name).write_bytes(content)
        _sync(folder / path.name)
        os.replace(folder / path.name, path)
        _sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system says while something is written under `path` into one line for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write under {path}: {reason}; free some space or name another folder") from error


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        host, _, rest = folder.name.removeprefix(_PREFIX).rpartition("-")[0].rpartition("-")
        try:
            if host == socket.gethostname():
                abandoned = not _alive(int(rest))
            else:
                abandoned = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
        except (OSError, ValueError):  # gone meanwhile, or not a name of ours
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
