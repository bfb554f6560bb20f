"""Run a sweep: several runs at a time, each as the real commands in its own processes. The same command resumes it."""

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from idrid_jax.data.manifest import find_prepared
from idrid_jax.errors import UserError
from idrid_jax.evaluation.snapshot_metrics import SnapshotMetrics
from idrid_jax.models import NETWORKS
from idrid_jax.sweep import results
from idrid_jax.sweep.definition import Run, Sweep
from idrid_jax.sweep.job import Job
from idrid_jax.training import monitoring, run_dir

PROGRESS_S = 60  # seconds between lines of progress
ORPHAN_S = 120  # seconds that runs of a killed sweep get to save
POLL_S = 0.2


def check_runs(sweep: Sweep, workdir: Path) -> dict[str, str]:
    """Return the fingerprint of the release for each run's name: the newest prepared one if the run names none.

    Raises UserError, naming the run, if there is no release, or if its folder has another configuration or release.
    """
    fingerprints, releases = {}, {}
    for run in sweep.runs:
        try:
            key = run.config.data.data_dir, run.config.data.release
            if key not in releases:
                releases[key] = find_prepared(key[0] or None, key[1])
            run_dir.check_resume(workdir / run.name, run.config, releases[key])
            monitoring.check_best_metric(run.config, SnapshotMetrics.names)
            _check_init_from(run)
        except UserError as error:
            raise UserError(f"{sweep.path}, run {run.number}: {error}") from error
        fingerprints[run.name] = releases[key].fingerprint
    return fingerprints


def _check_init_from(run: Run) -> None:
    if not run.config.init_from:
        return
    source = run_dir.find_record(run.config.init_from)
    if source is None:
        raise UserError(f"config.init_from = {run.config.init_from!r}: no run is there")
    network = NETWORKS.get(source.config.network)
    if network is None or network.family != NETWORKS[run.config.network].family:
        raise UserError(
            f"config.init_from = {run.config.init_from!r}: its network is {source.config.network}; choose a run of "
            f"{run.config.network}, or of another size of it"
        )


def run_sweep(sweep: Sweep, workdir: Path, *, num_jobs: int = 1, only: Run | None = None) -> int:
    """Train and evaluate the unfinished runs, `num_jobs` at a time; return the exit status.

    only: run this one alone; other processes may run others at the same time.

    The exit status is 0 if all runs are finished, 1 if some are not (their reasons are printed and in sweep.csv), and
    130 or 143 after Ctrl-C or SIGTERM, which is forwarded to the runs so that they save.

    Raises UserError where `check_runs` does, and if another sweep works in `workdir`.
    """
    workdir = workdir.absolute()
    with make_writable(workdir), lock_sweep(workdir, shared=only is not None):
        releases = check_runs(sweep, workdir)
        if abandoned := results.abandoned_folders(sweep, workdir):
            print(f"ignored, because {sweep.path} no longer has these runs: {', '.join(abandoned)}")
        for line in sweep.repeated:
            print(line)
        selected = [only] if only else list(sweep.runs)
        todo = [run for run in selected if not results.is_finished(run, workdir / run.name)]
        print(f"{len(selected) - len(todo)} of {len(selected)} runs are finished", flush=True)
        jobs = []
        with _collect_signals() as received:
            try:
                _run_jobs(sweep, workdir, todo, releases, num_jobs, received, jobs)
            finally:
                for job in jobs:  # after an error, such as a full disk: leave no process behind
                    job.stop()
                while any([job.poll() for job in jobs]):
                    time.sleep(POLL_S)
        frame = results.write_results(sweep, workdir)
    files = f"written: {workdir / results.CSV}, {workdir / results.PICTURE}"
    print(f"\n{results.format_results(frame, sweep.fields())}\n\n{files}")
    if received:
        print("interrupted: the same command resumes", flush=True)
        return 128 + received[0]
    return 0 if all(results.is_finished(run, workdir / run.name) for run in selected) else 1


def _run_jobs(sweep, workdir, todo, releases, num_jobs, received, jobs) -> None:
    """Keep `num_jobs` runs at work, listed in `jobs`, until all are done or a signal is received."""
    waiting, free_slots, num_forwarded = list(todo), list(range(num_jobs)), 0
    last_progress = time.monotonic()
    while jobs or (waiting and not received):
        while waiting and free_slots and not received:
            jobs.append(_start_job(sweep, workdir, waiting.pop(0), releases, free_slots.pop(0), num_jobs, received))
        while num_forwarded < len(received):
            num_forwarded += 1
            action = "saving" if num_forwarded == 1 else "killing"
            print(f"{signal.Signals(received[num_forwarded - 1]).name}: {action} the current runs", flush=True)
            for job in jobs:
                job.stop(kill=num_forwarded > 1)
        for job in [job for job in jobs if not job.poll()]:
            jobs.remove(job)
            free_slots.append(job.slot)
            print(f"[run {job.run.number}] {job.run.name}: {job.outcome()}", flush=True)
            if jobs or waiting:  # after the last one they are written by `run_sweep`
                results.write_results(sweep, workdir)
        if jobs and time.monotonic() - last_progress > PROGRESS_S:
            last_progress = time.monotonic()
            for job in jobs:
                print(f"[run {job.run.number}] {job.progress()}", flush=True)
        if jobs:
            time.sleep(POLL_S)


def _start_job(sweep, workdir, run, releases, slot, num_slots, received) -> Job:
    job = Job(run, workdir, sweep.path, sweep.common, releases[run.name], slot, num_slots)
    try:
        with lock_run(job.folder, wait_s=ORPHAN_S, stop=received) as lock:
            job.start(lock)
        print(f"[run {run.number}] {run.name}: started, log in {job.log}", flush=True)
    except UserError as error:
        job.fail(str(error))
    return job


@contextlib.contextmanager
def make_writable(workdir: Path) -> Iterator[None]:
    """Create the folder. Raises UserError if that fails, or if something cannot be written within the block."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place = error.filename or workdir
        raise UserError(f"--workdir {place}: {error.strerror or error}; free some space or choose another") from error


@contextlib.contextmanager
def lock_sweep(workdir: Path, *, shared: bool) -> Iterator[None]:
    """Lock the sweep's folder: exclusively, or together with others that each run one run of it (`shared`).

    Raises UserError if another process has locked it.
    """
    with (workdir / results.LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir {workdir}: another sweep works there ({_owner_text(file)}): wait for it, or stop it"
            ) from error
        _write_owner(file)
        yield


@contextlib.contextmanager
def lock_run(folder: Path, *, wait_s: float, stop: list = ()) -> Iterator[int]:
    """Lock a run's folder and return the file descriptor, which the run's processes inherit.

    The lock lasts until these processes end, even if the sweep is killed; orphans of a killed sweep get `wait_s`
    seconds to save and end. Raises UserError if the folder stays locked, and immediately if its sweep is alive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / results.LOCK_FILE).open("a+") as file:
        deadline, announced = time.monotonic() + wait_s, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if _owner_is_alive(file) or time.monotonic() > deadline or stop:
                    raise UserError(f"{folder}: another process works there ({_owner_text(file)})") from error
            if not announced:
                print(f"{folder}: waiting for a run of a killed sweep to save", flush=True)
                announced = True
            time.sleep(POLL_S)
        _write_owner(file)
        yield file.fileno()


def _write_owner(file) -> None:
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()


def _read_owner(file) -> tuple[str, str]:
    """Return host and process id of a lock's owner; empty strings if the file has none."""
    file.seek(0)
    host, _, process = file.read().strip().partition(" ")
    return host, process


def _owner_text(file) -> str:
    host, process = _read_owner(file)
    return f"process {process} on {host}" if process else "unknown process"


def _owner_is_alive(file) -> bool:
    host, process = _read_owner(file)
    if host != socket.gethostname() or not process.isdigit():
        return host != ""  # a process of another machine may be alive
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C, SIGTERM and SIGHUP append their number instead of ending the process."""
    received = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
