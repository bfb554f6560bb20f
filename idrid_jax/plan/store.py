"""What compilers said before, on disk: a compilation takes up to minutes, and says the same each time."""

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
from idrid_jax.plan.compile import Facts

# What the compiled step is made of, and what reads it
SOURCES = (
    "models/**/*.py",
    *(f"training/{name}.py" for name in ("accumulate", "augment", "build", "ema", "losses", "mesh")),
    *(f"training/{name}.py" for name in ("objectives", "schedules", "state", "step", "stepper")),
    "pixels.py",
    *(f"data/{name}.py" for name in ("order", "resident")),
    *(f"plan/{name}.py" for name in ("compile", "collectives", "hlo", "traffic")),
    *(f"bench/{name}.py" for name in ("memory", "program")),
)
# Fields that change nothing of the step's program, or no more than a number in it
FREE = ("seed", "total_kimg", "snapshot_kimg", "log_kimg", "checkpoint", "log")


def folder() -> Path:
    """$XDG_CACHE_HOME/idrid_jax/plan, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "idrid_jax" / "plan"


def key(config: ml_collections.ConfigDict, target: str, compiler: str, effort: str) -> str:
    """Of everything that the compiler's answer depends on: the configuration (batch and mesh are in it), the devices,
    the effort, the versions, and the source of the step."""
    said = {
        "config": {name: value for name, value in config.to_dict().items() if name not in FREE},
        "target": target,
        "effort": effort,
        "versions": [compiler, jax.__version__, jaxlib.__version__],
        "source": source(),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]


def source() -> str:
    """A hash of SOURCES as they are now."""
    root = Path(idrid_jax.__file__).parent
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def load(name: str) -> Facts | None:
    """What was said before; None where nothing was, or it cannot be read."""
    try:
        return Facts(**json.loads((folder() / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save(name: str, facts: Facts) -> None:
    """Keeps it, whole or not at all; where the folder cannot be written, it is said again next time."""
    with contextlib.suppress(OSError, UserError):
        folder().mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder() / f"{name}.json", json.dumps(dataclasses.asdict(facts)))
