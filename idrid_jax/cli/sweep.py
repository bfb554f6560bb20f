"""The command that runs many runs: sweep."""

from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.errors import UserError


def _define(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a sweep file, such as configs/sweeps/dcgan28_lr_batch.py; --config.FIELD=VALUE changes a field of all runs "
        "(needed)",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "a folder for each run lies there; the same command again goes on",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "jobs",
        None,
        "runs at once, which divide processors and GPUs between them; empty: one, as an array no limit",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string("only", "", "one run, by its number or its folder's name", flag_values=values)
    flags.DEFINE_boolean("slurm", False, "submit the runs as a Slurm array instead of running them", flag_values=values)
    flags.DEFINE_string(
        "sbatch", "", "options of each task, such as '--partition=gpu --gres=gpu:1 --time=4:00:00'", flag_values=values
    )
    flags.DEFINE_boolean(
        "dry_run", False, "check and list the runs (or print the array's script), and stop", flag_values=values
    )


def _run(values) -> int | None:
    if values.config is None:
        raise UserError("--config is missing: name a sweep file such as configs/sweeps/dcgan28_lr_batch.py")
    if values.sbatch and not values.slurm:
        raise UserError("--sbatch goes with --slurm")
    if values.slurm and values.only:
        raise UserError("--slurm and --only exclude each other: take one")
    from ml_collections import config_flags

    from idrid_jax.sweep import definition, runner

    path = config_flags.get_config_filename(values["config"])
    common = config_flags.get_override_values(values["config"])
    sweep = definition.read(path, values.config, common)
    workdir = Path(values.workdir)
    only = _find(values.only, sweep) if values.only else None
    if values.slurm:
        return _slurm(values, sweep, workdir)
    if values.dry_run:
        runner.check(sweep, workdir.absolute())
        print(
            "\n".join([*(f"{run.number:4}  {run.name}" for run in sweep.runs if only in (None, run)), *sweep.repeated])
        )
        return None
    return runner.run(sweep, workdir, jobs=values.jobs or 1, only=only)


def _slurm(values, sweep, workdir):
    from idrid_jax.sweep import definition, runner, slurm

    runner.check(sweep, workdir.absolute())
    fields = [f"--config.{name}={definition.text(value)}" for name, value in sweep.common.items()]
    arguments = [f"--config={sweep.path.absolute()}", *fields, f"--workdir={workdir.absolute()}"]
    script = slurm.script(sweep, workdir, values.sbatch, arguments, at_once=values.jobs)
    if script is None:
        print(f"all {len(sweep.runs)} runs are finished")
    elif values.dry_run:
        print(script, end="")
    else:
        with runner.writable(workdir), runner.locked(workdir, shared=True):
            print(slurm.submit(script, workdir))


def _find(only, sweep):
    for run in sweep.runs:
        if only in (str(run.number), run.name):
            return run
    from idrid_jax.errors import suggest_name

    numbers = f"{sweep.runs[0].number} to {sweep.runs[-1].number}"
    raise UserError(f"--only {only}: no such run; {suggest_name(only, [run.name for run in sweep.runs])} ({numbers})")


SWEEP = Command(
    "many runs of one configuration, then a table and a picture of them",
    "--config configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch --jobs 2",
    _define,
    _run,
)
