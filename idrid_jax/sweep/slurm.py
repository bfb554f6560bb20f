"""Submit a sweep as a Slurm array, of which each task runs one run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.errors import UserError
from idrid_jax.sweep import results
from idrid_jax.sweep.definition import Sweep

SCRIPT = "sweep.sbatch"


def array_script(
    sweep: Sweep, workdir: Path, options: str, arguments: list[str], *, max_tasks: int | None = None
) -> str | None:
    """Return the script for `sbatch`; None if every run is finished.

    Args:
      sweep, workdir: the runs and their folder.
      options: for sbatch, such as "--partition=gpu --gres=gpu:1 --time=4:00:00".
      arguments: of `idrid-jax sweep` in all tasks.
      max_tasks: how many tasks may run at a time; None: no limit.

    A task finds its run by name, so the sweep file may change while it waits. Raises UserError for invalid options.
    """
    workdir = workdir.absolute()
    todo = [run for run in sweep.runs if not results.is_finished(run, workdir / run.name)]
    if not todo:
        return None
    limit = f"%{max_tasks}" if max_tasks else ""
    names = "\n".join(f"  [{run.number}]={shlex.quote(run.name)}" for run in todo)
    options = "\n".join(f"#SBATCH {option}" for option in _options(options))
    numbers = ",".join(str(run.number) for run in todo)
    command = shlex.join([sys.executable, "-m", "idrid_jax", "sweep", *arguments])
    return f"""#!/usr/bin/env bash
# The unfinished runs of {sweep.path}; written by `idrid-jax sweep --slurm`. Submitting it again resumes them.
#SBATCH --job-name={re.sub(r"[^A-Za-z0-9_.-]", "_", sweep.path.stem)}
#SBATCH --array={numbers}{limit}
#SBATCH --output={shlex.quote(str(workdir).replace("%", "%%"))}/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
{options}
set -euo pipefail
names=(
{names}
)
# exec, so that the SIGTERM that Slurm sends two minutes before the time limit reaches the sweep, whose run then saves
exec {command} --only "${{names[$SLURM_ARRAY_TASK_ID]}}"
"""


def submit(text: str, workdir: Path) -> str:
    """Write the script, submit it and return sbatch's message. Raises UserError if sbatch refuses or is missing."""
    path = workdir.absolute() / SCRIPT
    atomic.write_text(path, text)
    if shutil.which("sbatch") is None:
        raise UserError(f"--slurm: this machine has no sbatch; submit {path} where it is installed")
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"sbatch {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _options(options: str) -> list[str]:
    """Return each option of sbatch with its value, as in a line of the script."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--sbatch {options!r}: {error}") from error
    lines = []
    for word in words:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        elif lines and "=" not in lines[-1]:
            lines[-1] += f" {shlex.quote(word)}"
        else:
            raise UserError(f"--sbatch: {word!r} belongs to no option; write '--partition=gpu --time=4:00:00'")
    for line in lines:
        if re.match(r"(--array|-a|--output|-o|--signal)\b", line):
            raise UserError(f"--sbatch: {line}: the sweep sets this option; --jobs limits the tasks that run at a time")
    return lines
