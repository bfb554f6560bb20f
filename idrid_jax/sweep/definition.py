"""Read a sweep file and check each of its runs before any starts."""

import dataclasses
import hashlib
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from idrid_jax import config as config_lib
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models import NETWORKS
from idrid_jax.training import sharding

MAX_NAME_LENGTH = 120  # characters of a folder's name
FINISHED, FAILED, INTERRUPTED, RUNNING, WAITING = "finished", "failed", "interrupted", "running", "waiting"
EXAMPLE = "configs/sweeps/dcgan28_lr_batch.py"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      number: position in what sweep() yields, from 1.
      name: folder name, made of its overrides (`folder_name`).
      overrides: field -> value, sorted by field.
      config: the complete configuration.
    """

    number: int
    name: str
    overrides: dict[str, Any]
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
      path: the file.
      common: field -> value that the command line changes for all runs.
      runs: without repetitions.
      repeated: a line about each skipped repetition.
    """

    path: Path
    common: dict[str, Any]
    runs: tuple[Run, ...]
    repeated: tuple[str, ...]

    def fields(self) -> list[str]:
        """Return the fields that any run changes, sorted."""
        return sorted({name for run in self.runs for name in run.overrides})


def read_sweep(path: Path | str, config: ml_collections.ConfigDict, common: dict[str, Any] | None = None) -> Sweep:
    """Return the sweep in the file at `path`.

    Args:
      path: the sweep file.
      config: what its get_config() returned, including `common`.
      common: field -> value that the command line changes for all runs.

    Raises UserError for the first invalid run, naming file, run, field and value.
    """
    runs, repeated, seen = [], [], {}
    for number, overrides in enumerate(_run_overrides(path), 1):
        where = f"{path}, run {number}"
        try:
            changed = config.copy_and_resolve_references()
            overrides = _apply(changed, overrides)
            config_lib.validated(changed)
            _check_mesh(changed)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        key = tuple(config_lib.flatten(changed).items())
        if key in seen:
            repeated.append(f"run {number} ({folder_name(overrides, config)}) is the same as run {seen[key]}: skipped")
            continue
        seen[key] = number
        runs.append(Run(number, folder_name(overrides, config), overrides, changed))
    if not runs:
        raise UserError(f"{path}: sweep() yields no run; it must yield {{field: value}} for each, as {EXAMPLE} does")
    for name, value in (common or {}).items():
        if all(name in run.overrides for run in runs):
            raise UserError(f"--config.{name}={flag_text(value)}: every run of {path} sets this field; change it there")
    return Sweep(Path(path), dict(common or {}), tuple(runs), tuple(repeated))


def _run_overrides(path):
    """Yield what sweep() yields, with its errors as UserError."""
    try:
        sweep = runpy.run_path(str(path)).get("sweep")
        if not callable(sweep):
            raise UserError(f"{path}: has no sweep() that yields {{field: value}} for each run, as {EXAMPLE} does")
        yield from sweep()
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may do
        raise UserError(f"{path}: sweep(): {type(error).__name__}: {' '.join(str(error).split())}") from error


def _apply(config, overrides) -> dict[str, Any]:
    """Set the fields in `config`; return them with the values that `config` then holds."""
    if not isinstance(overrides, dict):
        raise UserError(f"sweep() yields {overrides!r}: it must yield {{field: value}}, such as {{'batch_size': 32}}")
    known = config_lib.flatten(config)
    for name, value in overrides.items():
        if members := [field for field in known if field.startswith(f"{name}.")]:
            raise UserError(f"config.{name} = {value!r}: is a group of fields; choose one of {', '.join(members)}")
        if name not in known:
            raise UserError(f"config.{name} = {value!r}: no such field; {suggest_name(str(name), known)}")
        value = value.item() if isinstance(value, np.generic) else value  # from np.geomspace, for example
        config.update_from_flattened_dict({name: value})
    applied = config_lib.flatten(config)
    return {name: applied[name] for name in sorted(overrides)}


def _check_mesh(config: ml_collections.ConfigDict) -> None:
    """Raise UserError if `config.mesh` cannot split the batch or the image, as far as this is known without devices."""
    data = 1 if config.mesh.data == config_lib.AUTO else config.mesh.data
    size = NETWORKS[config.network].size
    sharding.check_divisible(config.batch_size, size, data, config.mesh.rows)


def folder_name(overrides: dict[str, Any], config: ml_collections.ConfigDict) -> str:
    """Return the overrides as a name such as "batch_size=16,g_learning_rate=0.0002", safe in file systems and shells.

    It does not depend on the other runs, so a folder keeps its name when the sweep file changes.
    """
    if not overrides:
        return "base"
    last_parts = Counter(name.rpartition(".")[2] for name in config_lib.flatten(config))
    groups = set(config)

    def short(name):
        last = name.rpartition(".")[2]
        return last if last_parts[last] == 1 and last not in groups - {name} else name

    exact = ",".join(f"{short(name)}={flag_text(value)}" for name, value in sorted(overrides.items()))
    safe = re.sub(r"[^\w.,=+-]", "_", exact, flags=re.ASCII)
    if safe == exact and len(safe) <= MAX_NAME_LENGTH:
        return safe
    return f"{safe[: MAX_NAME_LENGTH - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def flag_text(value: Any) -> str:
    """Return a field's value as the command line expects it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
