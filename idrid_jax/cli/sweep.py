"""`idrid-jax sweep`: train several runs of one configuration, then compare them."""

from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_config
from idrid_jax.errors import UserError, suggest_name


def _define(values, argv):
    define_config(values, argv, " of all runs (needed)", example="configs/sweeps/dcgan28_lr_batch.py")
    flags.DEFINE_string(
        "workdir",
        None,
        "folder for the run directories; the same command again resumes the sweep",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "jobs",
        None,
        "number of concurrent runs, which share processors and GPUs; default: 1, with --slurm no limit",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string("only", "", "only this run: its number or the name of its folder", flag_values=values)
    flags.DEFINE_boolean("slurm", False, "submit the runs as a Slurm array instead of running them", flag_values=values)
    flags.DEFINE_string(
        "sbatch",
        "",
        "sbatch options of each task, such as '--partition=gpu --gres=gpu:1 --time=4:00:00'",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "dry_run", False, "check and list the runs (or print the Slurm script), and stop", flag_values=values
    )


def _run(values) -> int | None:
    if values.config is None:
        raise UserError("--config is missing: name a sweep file such as configs/sweeps/dcgan28_lr_batch.py")
    if values.sbatch and not values.slurm:
        raise UserError("--sbatch goes with --slurm")
    if values.slurm and values.only:
        raise UserError("--slurm and --only exclude each other: choose one")
    from ml_collections import config_flags

    from idrid_jax.sweep import definition, runner

    path = config_flags.get_config_filename(values["config"])
    common = config_flags.get_override_values(values["config"])
    sweep = definition.read_sweep(path, values.config, common)
    workdir = Path(values.workdir)
    only = _find(values.only, sweep) if values.only else None
    if values.slurm:
        return _slurm(values, sweep, workdir)
    if values.dry_run:
        runner.check_runs(sweep, workdir.absolute())
        runs = [run for run in sweep.runs if only in (None, run)]
        print("\n".join([*(f"{run.number:4}  {run.name}" for run in runs), *sweep.repeated]))
        return None
    return runner.run_sweep(sweep, workdir, num_jobs=values.jobs or 1, only=only)


def _slurm(values, sweep, workdir):
    from idrid_jax.sweep import definition, runner, slurm

    runner.check_runs(sweep, workdir.absolute())
    fields = [f"--config.{name}={definition.flag_text(value)}" for name, value in sweep.common.items()]
    arguments = [f"--config={sweep.path.absolute()}", *fields, f"--workdir={workdir.absolute()}"]
    script = slurm.array_script(sweep, workdir, values.sbatch, arguments, max_tasks=values.jobs)
    if script is None:
        print(f"all {len(sweep.runs)} runs are finished")
    elif values.dry_run:
        print(script, end="")
    else:
        with runner.make_writable(workdir), runner.lock_sweep(workdir, shared=True):
            print(slurm.submit(script, workdir))


def _find(only, sweep):
    for run in sweep.runs:
        if only in (str(run.number), run.name):
            return run
    numbers = f"{sweep.runs[0].number} to {sweep.runs[-1].number}"
    raise UserError(f"--only {only}: no such run; {suggest_name(only, [run.name for run in sweep.runs])} ({numbers})")


SWEEP = Command(
    "train several runs of one configuration, then compare them in a table and a plot",
    "--config configs/sweeps/dcgan28_lr_batch.py --workdir runs/dcgan28_lr_batch --jobs 2",
    _define,
    _run,
)
