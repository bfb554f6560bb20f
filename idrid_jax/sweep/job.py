"""One run of a sweep at work: `idrid-jax train`, then `idrid-jax evaluate`, each a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from idrid_jax.sweep import results
from idrid_jax.sweep.definition import Run, text
from idrid_jax.sweep.results import FAILED, FINISHED, INTERRUPTED, RUNNING, Status
from idrid_jax.training.logging import read_stats
from idrid_jax.training.run_dir import RunDir

COMMAND = [sys.executable, "-m", "idrid_jax"]
CHILD = Path(__file__).with_name("child.py")
LOG = "sweep.log"  # in the run's folder: what its commands printed, of all attempts


class Job:
    """Call `start`, then `poll` until it returns False.

    `slot` of `slots` says which share of the machine's processors and GPUs the run gets.
    """

    def __init__(
        self, run: Run, workdir: Path, path: Path, common: dict[str, Any], release: str, slot: int, slots: int
    ):
        """path: of the sweep file; common: field -> value for all runs; release: the fingerprint to train on."""
        self.run, self.slot, self.folder = run, slot, workdir / run.name
        self.log = self.folder / LOG
        # the release by its fingerprint: one that is prepared meanwhile is not for the runs that come later
        changes = {**common, **run.overrides, "data.release": release}
        fields = [f"--config.{name}={text(value)}" for name, value in changes.items()]
        self._commands = {
            "training": ["train", f"--config={path}", f"--workdir={self.folder}", *fields],
            "evaluating": ["evaluate", f"--workdir={self.folder}"],
        }
        self._environment, self._processors = share(slot, slots)
        self._process, self._stopped, self._doing = None, False, ""
        self._status, self._began = Status.read(self.folder), time.monotonic()
        self._seconds = self._status.seconds

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, lock: int) -> None:
        """lock: a file descriptor that holds the run's folder, which the processes inherit."""
        self._lock = os.dup(lock)
        self._set(RUNNING)
        self._begin("training")

    def poll(self) -> bool:
        """Whether it is still at work; goes over to what comes next when a process has ended."""
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None:
            return True
        self._process = None
        if self._doing == "training" and status == 0 and not self._stopped and self._trained():
            self._begin("evaluating")
            return True
        if results.finished(self.run, self.folder) and status == 0:
            self._set(FINISHED)
        elif self._stopped or (self._doing == "training" and status == 0):
            self._set(INTERRUPTED)
        else:
            self._set(FAILED, self._reason(status))
        os.close(self._lock)
        return False

    def stop(self, *, kill: bool = False) -> None:
        """Asks the process to save and end, or ends it at once; what it is then comes by `poll`."""
        self._stopped = True
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def give_up(self, reason: str) -> None:
        """Fails before it could start."""
        # its folder is another's: nothing is written there
        self._status = Status(FAILED, reason, self._seconds, self.run.name)

    def outcome(self) -> str:
        """A line's worth of how it ended."""
        status = self._status
        return f"{status.status} after {status.seconds:.0f} s" + (f": {status.reason}" if status.reason else "")

    def progress(self) -> str:
        lines = read_stats(self.folder)
        done = f" at {lines[-1]['kimg']:g} of {self.run.config.total_kimg:g} kimg" if lines else ""
        rate = f", {results.rate(lines):.0f} images/s" if lines and self._doing == "training" else ""
        return f"{self.run.name}: {self._doing}{done}{rate}"

    def _begin(self, doing):
        self._doing = doing
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            log.write(f"$ idrid-jax {' '.join(self._commands[doing])}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), str(os.getpid()), self._processors, *COMMAND, *self._commands[doing]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment | {"PYTHONUNBUFFERED": "1"},
                pass_fds=(self._lock,),
                start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which tells its runs once
            )

    def _trained(self):
        """Whether the command went on to the end: interrupted from outside it ends well, too."""
        saved = [int(path.name) for path in (RunDir(self.folder).checkpoints).glob("[0-9]*") if path.name.isdigit()]
        return max(saved, default=-1) >= results.last_step(self.run)

    def _set(self, status, reason=""):
        self._status = Status(status, reason, self._seconds + time.monotonic() - self._began, self.run.name)
        self._status.write(self.folder)

    def _reason(self, status):
        """Why the process ended, from what it printed: a command's own line where there is one."""
        if status < 0:
            name = signal.Signals(-status).name
            return f"{self._doing}: ended by {name}" + (", out of memory?" if name == "SIGKILL" else "")
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()[1:] if line.strip()]
        told = [line.removeprefix("idrid-jax: ") for line in lines if line.startswith("idrid-jax: ")]
        return f"{self._doing}: {[f'ended with status {status}', *lines[-1:], *told[-1:]][-1]}"


def share(slot: int, slots: int) -> tuple[dict[str, str], str]:
    """The environment, and the processors as `child` takes them, for one of `slots` runs at once.

    Each gets its own processors, and its own GPUs where there are enough, else a share of the memory of one.
    """
    if slots == 1:
        return {}, "-"
    environment, processors = {}, "-"
    if hasattr(os, "sched_getaffinity"):
        there = sorted(os.sched_getaffinity(0))
        mine = there[slot * len(there) // slots : (slot + 1) * len(there) // slots] or [there[slot % len(there)]]
        processors = ",".join(map(str, mine))
    gpus = _gpus()
    if len(gpus) >= slots:
        gpus = gpus[slot * len(gpus) // slots : (slot + 1) * len(gpus) // slots]
    elif gpus:
        at_once = -(-slots // len(gpus))  # on one GPU
        gpus = [gpus[slot % len(gpus)]]
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # JAX takes 0.75 of a GPU's memory at once
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / at_once:.3f}"
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment, processors


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs that a process here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)
