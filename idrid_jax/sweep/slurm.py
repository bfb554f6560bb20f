"""A sweep as a Slurm array: a script of which each task runs one run."""

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

NAME = "sweep.sbatch"


def script(
    sweep: Sweep, workdir: Path, options: str, arguments: list[str], *, at_once: int | None = None
) -> str | None:
    """What `sbatch` takes; None where every run is finished.

    options: of sbatch, such as "--partition=gpu --gres=gpu:1 --time=4:00:00". arguments: of `idrid-jax sweep` for all
    tasks. at_once: at most so many tasks run at a time. A task finds its run by name, so that the sweep file may change
    while it waits. Raises UserError for options that are none.
    """
    workdir = workdir.absolute()
    todo = [run for run in sweep.runs if not results.finished(run, workdir / run.name)]
    if not todo:
        return None
    limit = f"%{at_once}" if at_once else ""
    named = "\n".join(f"  [{run.number}]={shlex.quote(run.name)}" for run in todo)
    given = "\n".join(f"#SBATCH {option}" for option in _options(options))
    numbers = ",".join(str(run.number) for run in todo)
    command = shlex.join([sys.executable, "-m", "idrid_jax", "sweep", *arguments])
    return f"""#!/usr/bin/env bash
# The runs of {sweep.path} that are not finished; written by `idrid-jax sweep --slurm`. Submitted again it goes on.
#SBATCH --job-name={re.sub(r"[^A-Za-z0-9_.-]", "_", sweep.path.stem)}
#SBATCH --array={numbers}{limit}
#SBATCH --output={shlex.quote(str(workdir).replace("%", "%%"))}/slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
{given}
set -euo pipefail
names=(
{named}
)
# exec: Slurm's SIGTERM, two minutes before the time limit, reaches the sweep, whose run then saves
exec {command} --only "${{names[$SLURM_ARRAY_TASK_ID]}}"
"""


def submit(text: str, workdir: Path) -> str:
    """Writes the script and submits it -> what sbatch says. Raises UserError where it refuses, or is not there."""
    path = workdir.absolute() / NAME
    atomic.write_text(path, text)
    if shutil.which("sbatch") is None:
        raise UserError(f"--slurm: sbatch is not on this machine; the script is {path}: submit it where it is")
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"sbatch {path}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _options(options: str) -> list[str]:
    """Each option of sbatch with its value, as a line of the script takes it."""
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
            raise UserError(f"--sbatch: {word!r} belongs to no option; write them as '--partition=gpu --time=4:00:00'")
    for line in lines:
        if re.match(r"(--array|-a|--output|-o|--signal)\b", line):
            raise UserError(f"--sbatch: {line}: the sweep sets it itself; for fewer at once take --jobs")
    return lines
