"""One run of a sweep: `idrid-jax train`, then `idrid-jax evaluate`, each in its own process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from idrid_jax.sweep import results
from idrid_jax.sweep.definition import FAILED, FINISHED, INTERRUPTED, RUNNING, Run, flag_text
from idrid_jax.sweep.results import Status
from idrid_jax.training.logging import read_stats
from idrid_jax.training.run_dir import RunDir

COMMAND = [sys.executable, "-m", "idrid_jax"]
CHILD = Path(__file__).with_name("child.py")
LOG = "sweep.log"  # in the run's folder: output of its commands, of all attempts
TRAINING, EVALUATION = "training", "evaluation"  # the phases of a run


class Job:
    """The processes of one run. Call `start`, then `poll` until it returns False."""

    def __init__(
        self, run: Run, workdir: Path, path: Path, common: dict[str, Any], release: str, slot: int, num_slots: int
    ):
        """Prepare a run; nothing starts yet.

        Args:
          run: the run; its folder is in `workdir`.
          path: of the sweep file.
          common: field -> value of all runs.
          release: fingerprint of the release to train on, so that a release prepared meanwhile is not used.
          slot, num_slots: which share of the processors and GPUs the run gets (`resources`).
        """
        self.run, self.slot, self.folder = run, slot, workdir / run.name
        self.log = self.folder / LOG
        fields = {**common, **run.overrides, "data.release": release}
        flags = [f"--config.{name}={flag_text(value)}" for name, value in fields.items()]
        self._commands = {
            TRAINING: ["train", f"--config={path}", f"--workdir={self.folder}", *flags],
            EVALUATION: ["evaluate", f"--workdir={self.folder}"],
        }
        self._environment, self._processors = resources(slot, num_slots)
        self._process, self._stopped, self._phase = None, False, ""
        self._status, self._start = Status.read(self.folder), time.monotonic()
        self._seconds = self._status.seconds

    def start(self, lock: int) -> None:
        """Start training. lock: descriptor of the folder's locked file, which the processes inherit."""
        self._lock = os.dup(lock)
        self._set(RUNNING)
        self._begin(TRAINING)

    def poll(self) -> bool:
        """Return whether the run is at work; start its next phase when a process has ended."""
        if self._process is None:
            return False
        exit_status = self._process.poll()
        if exit_status is None:
            return True
        self._process = None
        succeeded = exit_status == 0
        if self._phase == TRAINING and succeeded and not self._stopped and self._trained_to_the_end():
            self._begin(EVALUATION)
            return True
        if results.is_finished(self.run, self.folder) and succeeded:
            self._set(FINISHED)
        elif self._stopped or (self._phase == TRAINING and succeeded):
            self._set(INTERRUPTED)
        else:
            self._set(FAILED, self._failure(exit_status))
        os.close(self._lock)
        return False

    def stop(self, *, kill: bool = False) -> None:
        """Ask the process to save and end, or kill it; `poll` then returns False."""
        self._stopped = True
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def fail(self, reason: str) -> None:
        """Mark a run as failed that could not start. Another process owns its folder, so nothing is written there."""
        self._status = Status(FAILED, reason, self._seconds, self.run.name)

    def outcome(self) -> str:
        """Return the final status as text."""
        status = self._status
        return f"{status.status} after {status.seconds:.0f} s" + (f": {status.reason}" if status.reason else "")

    def progress(self) -> str:
        """Return how far the run is, as text."""
        lines = read_stats(self.folder)
        done = f", {lines[-1]['kimg']:g} of {self.run.config.total_kimg:g} kimg" if lines else ""
        rate = f", {results.median_images_per_s(lines):.0f} images/s" if lines and self._phase == TRAINING else ""
        return f"{self.run.name}: {self._phase}{done}{rate}"

    def _begin(self, phase: str) -> None:
        self._phase = phase
        command = self._commands[phase]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            log.write(f"$ idrid-jax {' '.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), str(os.getpid()), self._processors, *COMMAND, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment | {"PYTHONUNBUFFERED": "1"},
                pass_fds=(self._lock,),
                start_new_session=True,  # a terminal's Ctrl-C reaches the sweep, which forwards it once
            )

    def _trained_to_the_end(self) -> bool:
        """Return whether the last step is saved; a training that was interrupted from outside also exits with 0."""
        saved = [int(path.name) for path in RunDir(self.folder).checkpoints.glob("[0-9]*") if path.name.isdigit()]
        return max(saved, default=-1) >= results.last_step(self.run)

    def _set(self, status: str, reason: str = "") -> None:
        self._status = Status(status, reason, self._seconds + time.monotonic() - self._start, self.run.name)
        self._status.write(self.folder)

    def _failure(self, exit_status: int) -> str:
        """Return why the process failed: the signal, its own error message, or the last line that it printed."""
        if exit_status < 0:
            name = signal.Signals(-exit_status).name
            return f"{self._phase}: ended by {name}" + (", out of memory?" if name == "SIGKILL" else "")
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()[1:] if line.strip()]
        errors = [line.removeprefix("idrid-jax: ") for line in lines if line.startswith("idrid-jax: ")]
        return f"{self._phase}: {[f'exit status {exit_status}', *lines[-1:], *errors[-1:]][-1]}"


def resources(slot: int, num_slots: int) -> tuple[dict[str, str], str]:
    """Return the environment and the processors (as `child.py` expects them) of one of `num_slots` concurrent runs.

    Each run gets its own processors, and its own GPUs if there are enough, else a share of one GPU's memory.
    """
    if num_slots == 1:
        return {}, "-"
    environment, processors = {}, "-"
    if hasattr(os, "sched_getaffinity"):
        available = sorted(os.sched_getaffinity(0))
        share = _share(available, slot, num_slots) or [available[slot % len(available)]]
        processors = ",".join(map(str, share))
    gpus = _visible_gpus()
    if len(gpus) >= num_slots:
        gpus = _share(gpus, slot, num_slots)
    elif gpus:
        runs_per_gpu = -(-num_slots // len(gpus))
        gpus = [gpus[slot % len(gpus)]]
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # by default JAX takes 0.75 of a GPU's memory
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / runs_per_gpu:.3f}"
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment, processors


def _share(items: list, slot: int, num_slots: int) -> list:
    return items[slot * len(items) // num_slots : (slot + 1) * len(items) // num_slots]


def _visible_gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that a process here would use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)
