"""Runs a sweep's runs, some at once, each as the real commands in processes of their own; interrupted, it goes on."""

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
from idrid_jax.sweep import report, results
from idrid_jax.sweep.definition import Run, Sweep
from idrid_jax.sweep.job import Job
from idrid_jax.training import monitoring, run_dir

TELL_EVERY = 60  # seconds between lines that say how far the runs are
ORPHANS_SAVE = 120  # seconds that runs whose sweep was killed are given to save


def check(sweep: Sweep, workdir: Path) -> dict[str, str]:
    """Run's name -> fingerprint of the release that it trains on, the one prepared last where it names none.

    Raises UserError, naming the run, where there is none, or what its folder holds is of another configuration or
    release.
    """
    prints, known = {}, {}
    for run in sweep.runs:
        try:
            key = run.config.data.data_dir, run.config.data.release
            if key not in known:
                known[key] = find_prepared(key[0] or None, key[1])
            run_dir.check_resume(workdir / run.name, run.config, known[key])
            monitoring.check_best_metric(run.config, SnapshotMetrics.names)
            _check_source(run)
        except UserError as error:
            raise UserError(f"{sweep.path}, run {run.number}: {error}") from error
        prints[run.name] = known[key].fingerprint
    return prints


def _check_source(run: Run) -> None:
    if run.config.init_from:
        source = run_dir.find_record(run.config.init_from)
        family = lambda config: NETWORKS[config.network].family if config.network in NETWORKS else None
        if source is None or family(source.config) != family(run.config):
            found = "no run is there" if source is None else f"its network is {source.config.network}"
            wanted = f"it takes {run.config.network}, or another size of it"
            raise UserError(f"config.init_from = {run.config.init_from!r}: {found}; {wanted}")


def run(sweep: Sweep, workdir: Path, *, jobs: int = 1, only: Run | None = None) -> int:
    """Trains and evaluates what is not finished, `jobs` at once; returns the exit status.

    0: all are finished; 1: some are not (each run's reason is printed; sweep.csv has it for those that began); 130 or
    143: interrupted by Ctrl-C or a signal, which reached the runs, and they have saved. `only`: this run alone, others
    may be at work beside it.
    Raises UserError where `check` does, and where another sweep is at work in `workdir`.
    """
    workdir = workdir.absolute()
    with writable(workdir), locked(workdir, shared=only is not None):
        prints = check(sweep, workdir)
        if left := results.forgotten(sweep, workdir):
            print(f"left alone, as {sweep.path} names them no longer: {', '.join(left)}")
        for line in sweep.repeated:
            print(line)
        asked = [only] if only else list(sweep.runs)
        todo = [run for run in asked if not results.finished(run, workdir / run.name)]
        print(f"{len(sweep.runs)} runs, {len(asked) - len(todo)} of {len(asked)} asked for are finished", flush=True)
        working = []
        with _signals() as received:
            try:
                _work(sweep, workdir, todo, prints, jobs, received, working)
            finally:
                for job in working:  # a full disk, say: nothing is left behind that nobody looks after
                    job.stop()
                while any([job.poll() for job in working]):
                    time.sleep(0.2)
        frame = report.write(sweep, workdir)
    written = f"written to {workdir / report.CSV} and {workdir / report.PICTURE}"
    print(f"\n{report.text(frame, sweep.fields())}\n\n{written}")
    if received:
        print("interrupted: the same command goes on from there", flush=True)
        return 128 + received[0]
    return 0 if all(results.finished(run, workdir / run.name) for run in asked) else 1


def _work(sweep, workdir, todo, prints, jobs, received, working):
    """Keeps `jobs` runs at work, those in `working`, until none is left to do, or a signal was received."""
    waiting, free, forwarded = list(todo), list(range(jobs)), 0
    told = time.monotonic()
    while working or (waiting and not received):
        while waiting and free and not received:
            begun = waiting.pop(0)
            job = Job(begun, workdir, sweep.path, sweep.common, prints[begun.name], free.pop(0), jobs)
            try:
                with hold(job.folder, wait=ORPHANS_SAVE, stop=received) as lock:
                    job.start(lock)
            except UserError as error:
                job.give_up(str(error))
            working.append(job)
            if job.running:
                print(f"[run {begun.number}] {begun.name}: begins, see {job.log}", flush=True)
        while forwarded < len(received):
            forwarded += 1
            verb = "being saved" if forwarded == 1 else "killed"
            print(f"{signal.Signals(received[forwarded - 1]).name}: runs at work are {verb}", flush=True)
            for job in working:
                job.stop(kill=forwarded > 1)
        for job in list(working):
            if job.poll():
                continue
            working.remove(job)
            free.append(job.slot)
            print(f"[run {job.run.number}] {job.run.name}: {job.outcome()}", flush=True)
            if working or waiting:  # else it is written at the end
                report.write(sweep, workdir)
        if working and time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            for job in working:
                print(f"[run {job.run.number}] {job.progress()}", flush=True)
        if working:
            time.sleep(0.2)


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Makes the folder. Raises UserError where that fails, or something cannot be written there within the block."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place = error.filename or workdir
        raise UserError(f"--workdir {place}: {error.strerror or error}; make room or choose another") from error


@contextlib.contextmanager
def locked(workdir: Path, *, shared: bool) -> Iterator[None]:
    """Holds the sweep's folder: alone, or beside others that each run one run of it (`shared`).

    Raises UserError where another process holds it.
    """
    with (workdir / results.LOCK).open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir {workdir}: another sweep is at work there ({_holder(file)}): wait for it, or end it"
            ) from error
        _sign(file)
        yield


@contextlib.contextmanager
def hold(folder: Path, *, wait: float, stop: list = ()) -> Iterator[int]:
    """Holds a run's folder by a file descriptor that the run's processes inherit: it stays held until they end, even
    if the sweep is killed. Ones that outlived their sweep have `wait` seconds to save and end.

    Raises UserError where the folder stays held, and at once where a living sweep holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / results.LOCK).open("a+") as file:
        until, said = time.monotonic() + wait, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if _holder_lives(file) or time.monotonic() > until or stop:
                    raise UserError(f"{folder}: another process is at work there ({_holder(file)})") from error
            if not said:
                print(f"{folder}: waiting for a run that outlived its sweep to save", flush=True)
                said = True
            time.sleep(0.2)
        _sign(file)
        yield file.fileno()


def _sign(file):
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()


def _holder(file) -> str:
    file.seek(0)
    host, _, process = file.read().strip().partition(" ")
    return f"process {process} on {host}" if process else "no name left"


def _holder_lives(file) -> bool:
    file.seek(0)
    host, _, process = file.read().strip().partition(" ")
    if host != socket.gethostname() or not process.isdigit():
        return host != ""  # of another machine nobody here can tell
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Within the block Ctrl-C, SIGTERM and a closed terminal only add their number to the list."""
    received = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
