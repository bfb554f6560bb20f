"""The run directory: every path in it, its record `config.json`, and the lock that prevents a second run in it.

config.json       resolved configuration, the data's fingerprint, code revision, versions and devices
stats.jsonl       numbers of the training log, one line each time
reals.png, fakes_*.png, curves.png, tensorboard/
checkpoints/STEP  unreadable ones are moved to unreadable_checkpoints/STEP
evaluation.json   evaluation_N.json for images compared at N pixels; memorization.png, report.html;
                  usefulness_combined.json of several runs
"""

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections

import idrid_jax
from idrid_jax import config as config_lib
from idrid_jax.data import atomic
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.splits import count_photographs
from idrid_jax.errors import UserError
from idrid_jax.training import multihost

MAY_DIFFER = ("data.data_dir", "data.release", "log.console")  # between processes; the release is compared by content
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
LOCK_VISIBLE_SECONDS = 30.0  # until another host sees a new file: network file systems cache folders
NO_LOCK_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # file systems without locks


# -- Paths


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The paths in a run directory."""

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path).expanduser())

    config = property(lambda self: self.path / "config.json")
    stats = property(lambda self: self.path / "stats.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    curves = property(lambda self: self.path / "curves.png")
    checkpoints = property(lambda self: self.path / "checkpoints")
    unreadable_checkpoints = property(lambda self: self.path / "unreadable_checkpoints")
    memorization_pairs = property(lambda self: self.path / "memorization.png")
    combined_usefulness = property(lambda self: self.path / "usefulness_combined.json")
    report = property(lambda self: self.path / "report.html")
    lock = property(lambda self: self.path / ".lock")

    def image(self, name: str) -> Path:
        """Return the path of an image grid, such as "reals" or "fakes_000010"."""
        return self.path / f"{name}.png"

    def evaluation(self, pixels: int | None = None) -> Path:
        """Return the path of an evaluation, at the images' own size or at `pixels` per side."""
        return self.path / ("evaluation.json" if pixels is None else f"evaluation_{pixels}.json")

    def has_checkpoints(self) -> bool:
        """Return whether there is a finished checkpoint, without Orbax."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    def has_results(self) -> bool:
        """Return whether there is more than a start that failed: a snapshot or an evaluation."""
        grids = list(self.path.glob("fakes_*"))  # the first one is from the start
        evaluations = list(self.path.glob("evaluation*.json"))
        return self.has_checkpoints() or self.unreadable_checkpoints.exists() or bool(evaluations) or len(grids) > 1


# -- config.json


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What config.json says of a run.

    Attributes:
      config: the resolved configuration.
      fingerprint: of the content of the release that the run is trained on.
      release: that release's name.
      counts: photographs that the run could have seen, by grade: the training split, or with `data.held_out_fold` all
        graded photographs without that fold. held_out_counts: those that it never saw.
      data_dir: where it was prepared.
      left_eye_share: share of left eyes, which were mirrored in training; 0 without `data.canonicalize_laterality`.
      trained_against: pretrained networks that the generator was trained against, such as "vgg19": see `write_record`.
      versions: of idrid_jax, Python and packages.
    """

    config: ml_collections.ConfigDict
    fingerprint: str
    release: str
    counts: list[int]
    held_out_counts: list[int]
    data_dir: str
    left_eye_share: float
    trained_against: tuple[str, ...]
    versions: dict[str, str]

    def config_with_release(self, data_dir: Path | str = "") -> ml_collections.ConfigDict:
        """Return the configuration that names the very release of the run, in `data_dir` or where the run found it."""
        config = self.config.copy_and_resolve_references()
        config.data.release, config.data.data_dir = self.fingerprint, str(data_dir) or self.data_dir
        return config


def read_record(workdir: Path | str) -> RunRecord:
    """Return the record of the run in `workdir`. Raises UserError if there is no run, or its record is damaged."""
    record = find_record(workdir)
    if record is None:
        path = RunDir(workdir).config
        raise UserError(f"{path.parent}: no run is there (no {path.name}): name the --workdir of idrid-jax train")
    try:
        config_lib.validated(record.config)
    except UserError as error:
        raise UserError(f"{RunDir(workdir).config}: {error}") from error
    return record


def find_record(workdir: Path | str) -> RunRecord | None:
    """Return the record of the run in `workdir`, None without one. Raises UserError if the file is damaged."""
    path = RunDir(workdir).config
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        data = content["data"]
        return RunRecord(
            config=ml_collections.ConfigDict(content["config"]),
            fingerprint=data["fingerprint"],
            release=data["name"],
            counts=list(data["counts"]["training"]),
            held_out_counts=list(data["counts"]["held_out"]),
            data_dir=data["data_dir"],
            left_eye_share=data["left_eye_share"],
            trained_against=tuple(content["trained_against"]),
            versions=dict(content["versions"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the record of a run ({error}): restore it, or start again in another --workdir"
        ) from error


def write_record(
    workdir: Path, config: ml_collections.ConfigDict, manifest: Manifest, left_eye_share: float = 0.0
) -> None:
    """Write config.json, whole or not at all. `left_eye_share`: see `RunRecord`."""
    content = {
        "config": config.to_dict(),
        "data": {
            "fingerprint": manifest.fingerprint,
            "name": manifest.name,
            "release": str(manifest.release),
            "data_dir": str(manifest.folder.absolute().parent.parent),
            "counts": count_photographs(config, manifest),
            "left_eye_share": left_eye_share,
        },
        "trained_against": [],  # a loss on features of a pretrained network names it here: none does yet
        "revision": code_revision(),
        "versions": package_versions(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }
    atomic.write_text(RunDir(workdir).config, json.dumps(content, indent=2) + "\n")


def check_resume(workdir: Path, config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Raise UserError, naming the fields, if the run in `workdir` cannot resume with this configuration or data.

    Before the first snapshot there is nothing to resume: the run starts again, with whatever was corrected.
    """
    record = find_record(workdir)
    if record is None:
        if RunDir(workdir).has_checkpoints():
            name = RunDir(workdir).config.name
            raise UserError(f"{workdir}: has checkpoints but no {name}: restore it, or choose another --workdir")
        return
    if not RunDir(workdir).has_results():
        return
    if record.fingerprint != manifest.fingerprint:
        raise UserError(
            f"{workdir} was trained on release {record.release} ({record.fingerprint[:12]}), not on {manifest.name} "
            f"({manifest.fingerprint[:12]}): name it with --config.data.release={record.fingerprint[:12]}, "
            "or choose another --workdir"
        )
    if changed := config_lib.differences(record.config, config):
        raise UserError(
            f"{workdir} holds a run that differs in {'; '.join(changed)}: use the old values, "
            "or start in another --workdir (with --config.init_from to keep the networks)"
        )


def shared_facts(config: ml_collections.ConfigDict, manifest: Manifest) -> dict[str, object]:
    """Return what all processes of a run must have in common: versions, code, release and configuration."""
    fields = {f"config.{name}": value for name, value in config_lib.flatten(config).items() if name not in MAY_DIFFER}
    release = f"{manifest.fingerprint[:12]} ({manifest.name})"
    return {**package_versions(), "revision": code_revision(), "release": release, **fields}


def package_versions() -> dict[str, str]:
    """Return the versions of idrid_jax, Python and the packages that a run's numbers depend on."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"idrid_jax": idrid_jax.__version__, "python": platform.python_version(), **installed}


def code_revision() -> str:
    """Return the git revision of the code, with "+changes" if the tree differs; empty outside a checkout."""
    try:
        head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+changes" if changes else "")


def _git(*command) -> str:
    command = ["git", "-C", str(Path(idrid_jax.__file__).parent), *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


# -- Lock


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Create the directory and hold its lock: process 0 takes it, and the kernel releases it when that dies.

    Reading stays possible. Raises UserError, on all processes, if the directory cannot be written, another run holds
    the lock, or a process does not see what process 0 wrote there.
    """
    run_dir = RunDir(workdir)
    with contextlib.ExitStack() as stack:
        owner = multihost.run_on_first(lambda: stack.enter_context(_locked(run_dir)))
        multihost.run_on_each(lambda: _wait_for_lock_file(run_dir, owner))
        yield


@contextlib.contextmanager
def _locked(run_dir: RunDir) -> Iterator[str]:
    """Hold the lock and yield its owner, a line of JSON that names this process."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now})
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(run_dir)
        os.ftruncate(handle, 0)
        os.write(handle, owner.encode())
    except OSError as error:
        raise UserError(f"--workdir {run_dir.path}: cannot be written ({error.strerror}): choose another") from error
    try:
        yield owner
    finally:
        with contextlib.suppress(OSError):
            run_dir.lock.unlink()  # while it is still locked: see `_open_locked`
        os.close(handle)


def _open_locked(run_dir: RunDir) -> int:
    try:
        import fcntl
    except ImportError:  # Windows
        return os.open(run_dir.lock, os.O_RDWR | os.O_CREAT, 0o644)
    while True:
        handle = os.open(run_dir.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            holder = _lock_holder(run_dir)
            raise UserError(f"--workdir {run_dir.path}: {holder} trains there: stop it, or choose another") from error
        except OSError as error:
            if error.errno not in NO_LOCK_ERRORS:
                raise
            print(f"{run_dir.path}: its file system has no locks: a second run here is not refused", file=sys.stderr)
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(run_dir.lock)):
                return handle
        os.close(handle)  # the previous holder removed the file in the meantime


def _lock_holder(run_dir: RunDir) -> str:
    try:
        owner = json.loads(run_dir.lock.read_text())
        return f"another run (host {owner['host']}, pid {owner['pid']}, since {owner['since']})"
    except (OSError, ValueError, KeyError):
        return "another run"


def _wait_for_lock_file(run_dir: RunDir, owner: str) -> None:
    """Wait until this process sees the owner that process 0 wrote to the lock file."""
    deadline = time.monotonic() + LOCK_VISIBLE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            os.listdir(run_dir.path)  # makes a network file system look again
            if run_dir.lock.read_text() == owner:
                return
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir {run_dir.path} on host {socket.gethostname()} is not the directory of process 0: choose "
                "one that all processes share"
            )
        time.sleep(0.2)
