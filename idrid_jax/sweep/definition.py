"""A sweep file -> its runs, each checked before any begins."""

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
from idrid_jax.training import sharding as mesh_lib

NAME_LENGTH = 120  # characters of a folder's name; file systems take 255, people fewer
EXAMPLE = "configs/sweeps/dcgan28_lr_batch.py"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      number: its place in what sweep() yields, from 1.
      name: of its folder: what it changes, in words; the same whatever else the file yields.
      overrides: field -> value, sorted by field.
      config: the whole configuration.
    """

    number: int
    name: str
    overrides: dict[str, Any]
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
      path: the file.
      common: field -> value that the command line changed for all runs.
      runs: those to run, none twice.
      repeated: a line for each that was left out because it is the same as one before.
    """

    path: Path
    common: dict[str, Any]
    runs: tuple[Run, ...]
    repeated: tuple[str, ...]

    def fields(self) -> list[str]:
        """Fields that any run changes, sorted."""
        return sorted({name for run in self.runs for name in run.overrides})


def read(path: Path | str, config: ml_collections.ConfigDict, common: dict[str, Any] | None = None) -> Sweep:
    """The sweep in the file at `path`, whose get_config() gave `config`, with `common` of the command line in it.

    Raises UserError, naming the file, the run's number, the field and the value, for the first run that cannot be.
    """
    runs, repeated, seen = [], [], {}
    for number, overrides in enumerate(_yielded(path), 1):
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
            repeated.append(f"run {number} ({folder_name(overrides, config)}) is the same as run {seen[key]}: left out")
            continue
        seen[key] = number
        runs.append(Run(number, folder_name(overrides, config), overrides, changed))
    if not runs:
        raise UserError(f"{path}: sweep() yields nothing; it yields {{field: value}} for each run, as {EXAMPLE} does")
    for name, value in (common or {}).items():
        if all(name in run.overrides for run in runs):
            raise UserError(
                f"--config.{name}={text(value)}: every run of {path} sets that field itself; change it there"
            )
    return Sweep(Path(path), dict(common or {}), tuple(runs), tuple(repeated))


def _yielded(path):
    """What sweep() yields, one after another."""
    try:
        sweep = runpy.run_path(str(path)).get("sweep")
        if not callable(sweep):
            raise UserError(f"{path}: has no sweep(), which yields what each run changes, as {EXAMPLE} does")
        yield from sweep()
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may do
        raise UserError(f"{path}: sweep(): {type(error).__name__}: {' '.join(str(error).split())}") from error


def _apply(config, overrides) -> dict[str, Any]:
    """Sets the fields in `config`; returns them with the values that they then have."""
    if not isinstance(overrides, dict):
        raise UserError(f"sweep() yields {overrides!r}: it must yield {{field: value}}, such as {{'batch_size': 32}}")
    known = config_lib.flatten(config)
    for name, value in overrides.items():
        if members := [field for field in known if field.startswith(f"{name}.")]:
            raise UserError(f"config.{name} = {value!r}: a group of fields; name one of them: {', '.join(members)}")
        if name not in known:
            raise UserError(f"config.{name} = {value!r}: no such field; {suggest_name(str(name), known)}")
        value = value.item() if isinstance(value, np.generic) else value  # of np.geomspace and its like
        config.update_from_flattened_dict({name: value})
    applied = config_lib.flatten(config)
    return {name: applied[name] for name in sorted(overrides)}


def _check_mesh(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a batch or an image that `config.mesh` cannot split, where no device is needed to tell."""
    data = 1 if config.mesh.data == config_lib.AUTO else config.mesh.data
    size = NETWORKS[config.network].size
    mesh_lib.check_divisible(config.batch_size, size, data, config.mesh.rows)


def folder_name(overrides: dict[str, Any], config: ml_collections.ConfigDict) -> str:
    """The overrides as "batch_size=16,g_learning_rate=0.0002": safe in file systems, and in shells without quotes.

    It depends on them and on the fields that there are, not on the other runs: a folder keeps its name when the sweep
    file changes.
    """
    if not overrides:
        return "base"
    leaves = Counter(name.rpartition(".")[2] for name in config_lib.flatten(config))
    groups = set(config)

    def short(name):
        leaf = name.rpartition(".")[2]
        return leaf if leaves[leaf] == 1 and leaf not in groups - {name} else name

    exact = ",".join(f"{short(name)}={text(value)}" for name, value in sorted(overrides.items()))
    safe = re.sub(r"[^\w.,=+-]", "_", exact, flags=re.ASCII)
    if safe == exact and len(safe) <= NAME_LENGTH:
        return safe
    return f"{safe[: NAME_LENGTH - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def text(value: Any) -> str:
    """A field's value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
