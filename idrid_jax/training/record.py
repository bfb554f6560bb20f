"""A run's `config.json`: the resolved configuration, the data's fingerprint, code revision, versions and devices."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import jax
import ml_collections

import idrid_jax
from idrid_jax.config import differences, flatten
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError
from idrid_jax.training.run_dir import came_far

NAME = "config.json"
MAY_DIFFER = ("data.data_dir", "data.release", "log.console")  # between processes; the release is compared by content
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a workdir says of its run."""

    config: ml_collections.ConfigDict
    fingerprint: str  # of the release's content that it is trained on
    release: str  # that release's name, for people
    counts: list[int]  # its training photographs by grade
    data_dir: str  # where it was prepared
    left_eye_share: float = 0.0  # of the training photographs, which were mirrored (data.canonicalize_laterality)


def read(workdir: Path) -> Record | None:
    """The record in `workdir`, None where there is none. Raises UserError for a file that cannot be read as one."""
    path = Path(workdir) / NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        config = ml_collections.ConfigDict(content["config"])
        return Record(
            config,
            content["data"]["fingerprint"],
            content["data"]["name"],
            list(content["data"]["counts"]["grading"]["train"]),
            content["data"]["data_dir"],
            content["data"]["left_eye_share"] if config.data.canonicalize_laterality else 0.0,  # older records have none
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a run's record ({error}): restore it, or start again in another --workdir"
        ) from error


def write(workdir: Path, config: ml_collections.ConfigDict, manifest: Manifest, left_eye_share: float = 0.0) -> None:
    """Writes or renews the record, whole or not at all.

    left_eye_share: see `Record`; it is written down, as those who sample a run need not have its photographs.
    """
    content = {
        "config": config.to_dict(),
        "data": {
            "fingerprint": manifest.fingerprint,
            "name": manifest.name,
            "release": str(manifest.release),
            "data_dir": str(manifest.folder.absolute().parent.parent),
            "counts": manifest.counts,
            "left_eye_share": left_eye_share,
        },
        "revision": revision(),
        "versions": versions(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }
    partial = workdir / f".{NAME}"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, workdir / NAME)


def check_resume(workdir: Path, config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Raises UserError, naming the fields, where the run in `workdir` cannot go on with this configuration or data.
    Before its first snapshot there is nothing to go on with: it begins again, with whatever was corrected."""
    record = read(workdir)
    if record is None or not came_far(workdir):
        return
    if record.fingerprint != manifest.fingerprint:
        raise UserError(
            f"{workdir} was trained on release {record.release} ({record.fingerprint[:12]}), not on {manifest.name} "
            f"({manifest.fingerprint[:12]}): name it with --config.data.release={record.fingerprint[:12]}, "
            "or choose another --workdir"
        )
    changed = differences(record.config, config)
    if changed:
        raise UserError(
            f"{workdir} holds a run that differs in {'; '.join(changed)}: take the old values, "
            "or start in another --workdir (with --config.init_from to keep the networks)"
        )


def shared_facts(config: ml_collections.ConfigDict, manifest: Manifest) -> dict[str, object]:
    """Return what all processes of a run must have in common: versions, code, release, configuration."""
    values = {f"config.{name}": value for name, value in flatten(config).items() if name not in MAY_DIFFER}
    release = f"{manifest.fingerprint[:12]} ({manifest.name})"
    return {**versions(), "revision": revision(), "release": release, **values}


def versions() -> dict[str, str]:
    """Of idrid_jax, Python and what the numbers of a run depend on."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"idrid_jax": idrid_jax.__version__, "python": platform.python_version(), **installed}


def revision() -> str:
    """The code's git revision, "+changes" where the tree differs from it; empty outside a checkout."""
    folder = Path(idrid_jax.__file__).parent
    git = lambda *command: subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10
    )
    try:
        head = git("rev-parse", "HEAD")
        if head.returncode:
            return ""
        return head.stdout.strip() + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else ""
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
