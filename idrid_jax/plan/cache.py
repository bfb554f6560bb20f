"""Cache of compiled statistics on disk: a compilation takes up to minutes and gives the same figures each time."""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import jaxlib
import ml_collections

import idrid_jax
from idrid_jax.data import atomic
from idrid_jax.errors import UserError
from idrid_jax.plan.compile import CompiledStats

# Fields that change no more than a constant in the compiled step
IGNORED_FIELDS = ("seed", "total_kimg", "snapshot_kimg", "log_kimg", "checkpoint", "log")


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/idrid_jax/plan, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "idrid_jax" / "plan"


def cache_key(config: ml_collections.ConfigDict, target: str, compiler: str, effort: str) -> str:
    """Return a hash of what the figures depend on: configuration, devices, effort, versions and source code."""
    content = {
        "config": {name: value for name, value in config.to_dict().items() if name not in IGNORED_FIELDS},
        "target": target,
        "effort": effort,
        "versions": [compiler, jax.__version__, jaxlib.__version__],
        "source": source_hash(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def source_hash() -> str:
    """Return a hash of the package's Python files."""
    root = Path(idrid_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def load(key: str) -> CompiledStats | None:
    """Return the statistics stored under `key`; None if there are none or they cannot be read."""
    try:
        return CompiledStats(**json.loads((cache_folder() / f"{key}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def store(key: str, stats: CompiledStats) -> None:
    """Store statistics atomically. Where the folder cannot be written nothing is stored."""
    with contextlib.suppress(OSError, UserError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        atomic.write_text(cache_folder() / f"{key}.json", json.dumps(dataclasses.asdict(stats)))
