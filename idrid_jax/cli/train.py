"""`idrid-jax train`: train a generator, or resume training."""

import json
import sys
from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.errors import explain
from idrid_jax.cli.parsing import command_line, define_config
from idrid_jax.errors import UserError


def _define(values, argv):
    define_config(values, argv, " (needed)")
    flags.DEFINE_string(
        "workdir", None, "the run directory; the same command again resumes the run", required=True, flag_values=values
    )
    flags.DEFINE_boolean(
        "dry_run", False, "print the layers and the resolved configuration, and stop", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "HOST:PORT of process 0 of several; not needed under srun, mpirun, on TPU pods and Kubernetes",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "index of this process, from 0", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "join_timeout", 300.0, "seconds to wait for the other processes", lower_bound=0, flag_values=values
    )


def _run(values):
    from idrid_jax import config as config_lib

    if values.config is None:
        raise UserError("--config is missing: name a file such as configs/cgan32.py")
    config = config_lib.validated(values.config)
    from idrid_jax.evaluation.snapshot_metrics import SnapshotMetrics
    from idrid_jax.models.layer_table import networks_table
    from idrid_jax.training.monitoring import check_best_metric

    check_best_metric(config, SnapshotMetrics.names)  # `loop.train` does so too, for its other callers, but later
    if values.dry_run:
        print(networks_table(config))
        print(json.dumps(config.to_dict(), indent=2))
        return
    from idrid_jax.training import multihost

    with multihost.initialize(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        timeout=values.join_timeout,
        explain=lambda error: explain(error, values),
    ):
        given = config_lib.flatten(values.config)
        resolved = {name: value for name, value in config_lib.flatten(config).items() if value != given[name]}
        _print("\n".join(f"config.{name} = {value:g} ({given[name]})" for name, value in resolved.items()))
        _train(config, Path(values.workdir))


def _train(config, workdir):
    from idrid_jax.config import steps
    from idrid_jax.data.splits import count_photographs, find_release
    from idrid_jax.evaluation.snapshot_metrics import SnapshotMetrics
    from idrid_jax.models.layer_table import networks_table
    from idrid_jax.training import loop

    manifest = find_release(config)
    metrics = SnapshotMetrics(  # before the table, which takes seconds: its weights may be missing
        best=config.checkpoint.best,
        stop_on_collapse=config.on_collapse == "stop",
        log=lambda text: _print(text, file=sys.stderr),
    )
    _print(networks_table(config))
    counts = count_photographs(config, manifest)["training"]
    _print(f"release {manifest.name} ({manifest.fingerprint[:12]}), training photographs by grade: {counts}")
    if ramp_end := config.conditioning.start_kimg + config.conditioning.ramp_kimg:
        _print(f"full conditioning on grades from {ramp_end:g} kimg on; earlier checkpoints are not chosen")
    state = loop.train(config, workdir, manifest, metrics)
    step = int(state.step)
    if step < steps(config.total_kimg, config):
        return  # interrupted, which the loop has logged
    kimg = step * config.batch_size / 1000
    _print(f"step {step} ({kimg:g} kimg): images, stats.jsonl and checkpoints in {workdir}")
    _print(f"next: {command_line('evaluate', '--workdir', workdir)}")


def _print(text: str, file=None) -> None:
    """Print `text` unless it is empty, on process 0 only."""
    from idrid_jax.training import multihost

    if text and multihost.process_index() == 0:
        print(text, file=file, flush=True)


TRAIN = Command(
    "train a generator, or resume training",
    "--config configs/cgan32.py --workdir runs/cgan32 --config.total_kimg=200",
    _define,
    _run,
    trains=True,
)
