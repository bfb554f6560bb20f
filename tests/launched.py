"""Helpers of tests with several processes: the real command, started by a launcher, watched and killed from outside."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCAL = ("bash", str(ROOT / "launch" / "local.sh"))
ENVIRONMENT = os.environ | {
    "PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "JAX_NUM_CPU_DEVICES": "1",  # a process
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONUNBUFFERED": "1",
}


def train(workdir: Path, data_dir: Path, **changes) -> list[str]:
    """The words of a run of dcgan28, 8 images a step, a snapshot every 4 steps, every step logged."""
    fields = {
        "batch_size": 8, "total_kimg": 0.064, "snapshot_kimg": 0.032, "log_kimg": 0.008, "data.data_dir": data_dir,
        "data.validation_folds": 0, "checkpoint.best": "",  # as `conftest.make_config` has it, and no features
        **{name.replace("__", "."): value for name, value in changes.items()},
    }  # fmt: skip
    config = f"--config={ROOT / 'configs' / 'dcgan28.py'}"
    return ["train", config, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]


def command(*words) -> list[str]:
    return [sys.executable, "-m", "idrid_jax", *map(str, words)]


@contextlib.contextmanager
def started(*words, **environment):
    """A process group of its own, of which nothing is left at the end. Its output is one text."""
    process = subprocess.Popen(
        list(map(str, words)),
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(*words, timeout=400, **environment) -> tuple[int, str]:
    """Exit status and output of what must end by itself."""
    with started(*words, **environment) as process:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output


def run_together(*commands, timeout=100) -> tuple[list[int], list[str]]:
    """Exit statuses and outputs of commands that are processes 0, 1, ... of one run."""
    where = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={len(commands)}"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(*words, *where, f"--process_id={index}"))
            for index, words in enumerate(commands)
        ]
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        return [process.returncode for process in processes], outputs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, process, timeout=400):
    """What `condition` returns once it is true. The process must live on meanwhile."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def pid_of(workdir: Path, index: int) -> int:
    """Of the training process `index` in a workdir."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text().split("\0")
            mine = f"--process_id={index}" in words and f"--workdir={workdir}" in words
            if mine and words[1:3] == ["-m", "idrid_jax"]:
                return int(path.parent.name)
    raise AssertionError(f"no process {index}")


def lines(output: str, pattern: str) -> list[str]:
    """Those of the user's lines that match, without the launcher's prefix."""
    return [line for line in re.sub(r"(?m)^\[\d+\] ", "", output).splitlines() if re.search(pattern, line)]
