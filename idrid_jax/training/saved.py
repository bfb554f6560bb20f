"""A run's folder -> its record and networks: for those who go on from it, sample it or measure it."""

import sys
from pathlib import Path

import jax
import ml_collections

from idrid_jax import config as config_lib
from idrid_jax.errors import UserError
from idrid_jax.models import build_networks
from idrid_jax.training import build, record
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.state import TrainState


def read_record(workdir: Path | str) -> record.Record:
    """What a run's folder says of it. Raises UserError where no run is, or its configuration is none."""
    workdir = Path(workdir).expanduser()
    run = record.read(workdir)
    if run is None:
        raise UserError(f"{workdir}: no run is there (no {record.NAME}): name the --workdir of idrid-jax train")
    try:
        config_lib.validated(run.config)
    except UserError as error:
        raise UserError(f"{workdir / record.NAME}: {error}") from error
    return run


def with_its_release(run: record.Record, data_dir: Path | str = "") -> ml_collections.ConfigDict:
    """A run's configuration that names the very release it was trained on, under `data_dir`, or where the run found
    it."""
    config = run.config.copy_and_resolve_references()
    config.data.release, config.data.data_dir = run.fingerprint, str(data_dir) or run.data_dir
    return config


def read_run(
    workdir: Path | str, *, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> tuple[record.Record, TrainState]:
    """What a run's folder says of it, and the state of a checkpoint: of `step`, or the one with the lowest score (see
    `config.checkpoint.best`), or the newest where none has a score.

    It reads and changes nothing, as another process may be training there: an unreadable checkpoint is reported on
    stderr and stays, and the newest readable one is taken. The arrays come with `sharding` (None: whole on the first
    device).
    Raises UserError where no run is, its configuration is none, or no checkpoint (of that step) can be read.
    """
    workdir = Path(workdir).expanduser()
    run = read_record(workdir)
    _, init = build.make_update(run.config, *build_networks(run.config))
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.eval_shape(init, jax.random.key(0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    state, unreadable = None, []
    with Checkpoints(workdir, run.fingerprint) as checkpoints:
        steps = checkpoints.steps()
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{workdir}: no checkpoint of step {step}; there are {there}")
        candidates = [step]
        if step is None:
            best = checkpoints.chosen()
            candidates = sorted(steps, key=lambda one: (one == best, one), reverse=True)
        for candidate in candidates:
            try:
                state = checkpoints.restore(like, step=candidate)  # with a step it moves nothing
                break
            except UserError as error:
                unreadable.append(str(error))
    if state is None:
        wait = f"train until the first snapshot (config.snapshot_kimg = {run.config.snapshot_kimg:g})"
        raise UserError(unreadable[0] if unreadable else f"{workdir}: no checkpoint yet: {wait}")
    for message in unreadable:
        print(f"{message}; taking step {int(state.step)}", file=sys.stderr)
    return run, state
