"""Several processes train one model: the same losses, one run directory, and every fault ends all of them in a line."""

import errno
import json
import os
import re
import signal
import socket
import sys
import textwrap
import time
import types

import numpy as np
import pytest
from conftest import make_config, stats, steps
from conftest import train as train_here
from launched import LOCAL, command, free_port, lines, pid_of, run, run_together, started, train, wait_for

from idrid_jax import cli
from idrid_jax.data.layout import GRADES
from idrid_jax.data.pipeline import tfdata
from idrid_jax.errors import UserError
from idrid_jax.training import loop, multihost, run_dir
from idrid_jax.training.run_dir import RunDir

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
multiprocess = pytest.mark.multiprocess
platform_lowering = True  # as the processes that are compared


def assert_same_losses(rows, wanted):
    """float32: sums over devices have another order, and Adam's first steps amplify small differences."""
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, one in zip(rows, wanted):
        for name in ("loss_d", "loss_g", "d_real", "d_fake_after"):
            tolerance = 1e-4 if row["step"] < 4 else 2e-3 if row["step"] < 10 else 2e-2
            assert row[name] == pytest.approx(one[name], rel=tolerance), (row["step"], name)


# -- Training


@linux
@multiprocess
def test_two_processes_are_one_run_whatever_happens(phantom_data, tmp_path):
    """SIGTERM to one, then SIGKILL to one, then other numbers of devices: the losses of one uninterrupted process."""
    folder = tmp_path / "run"
    words = [*LOCAL, 2, "--", *train(folder, phantom_data, total_kimg=80)]
    saved = lambda step: any(
        int(path.name) >= step for path in RunDir(folder).checkpoints.glob("[0-9]*") if path.name.isdigit()
    )
    with started(*words) as process:
        wait_for(lambda: saved(4), process)
        os.kill(pid_of(folder, 1), signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (line,) = lines(output, "interrupted")
    first = int(re.search(r"saved step (\d+)", line)[1])
    assert steps(folder)[-1] == first and not run_dir.RunDir(folder).lock.exists()

    with started(*words) as process:
        wait_for(lambda: saved(first + 1), process)
        victim = pid_of(folder, 1)
        status, refused = run(*command(*train(folder, phantom_data)))  # a second run, of one process
        assert status == 2 and f"--workdir {folder}: another run (host " in refused and "Traceback" not in refused
        start = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        assert time.monotonic() - start < 120
    assert process.returncode == 128 + signal.SIGKILL, output
    assert lines(output, rf"^local: process 1 \(pid {victim}\) .*SIGKILL")
    assert lines(output, "another process was lost|another task died"), output
    assert lines(output, f"resuming from step {first}") and "Traceback" not in output

    # resumed by one process on eight devices, by two on four devices each, and by one on one device
    last = steps(folder)[-1] + 6
    alone = lambda where, until, devices: train_here(
        make_config(
            phantom_data,
            "dcgan28",
            mesh__data=devices,
            data__crop="letterbox",
            total_kimg=until * 8 / 1000,
            log_kimg=0.008,
        ),
        where,
    )
    alone(folder, last - 4, 8)
    words = train(folder, phantom_data, total_kimg=(last - 2) * 8 / 1000)
    status, output = run(*LOCAL, 2, "--", *words, JAX_NUM_CPU_DEVICES="4")
    assert status == 0 and steps(folder)[-1] == last - 2, output
    assert len(json.loads((folder / "config.json").read_text())["devices"]) == 8
    alone(folder, last, 1)
    alone(tmp_path / "alone", last, 1)
    assert_same_losses(stats(folder), stats(tmp_path / "alone"))
    assert (folder / "reals.png").read_bytes() == (tmp_path / "alone" / "reals.png").read_bytes()
    # a run that stopped in between has pictures of that too
    names = lambda where: {path.name for path in where.iterdir() if not path.name.startswith("fakes_")}
    assert names(folder) == names(tmp_path / "alone")


@linux
@multiprocess
def test_two_processes_stream_their_shares(phantom_data, tmp_path, monkeypatch):
    """The losses of one process that is fed the batches of both shares. One of the two has one core, so that it rounds
    its replicas differently."""
    words = command(*train(tmp_path / "two", phantom_data, total_kimg=0.032, data__pipeline="tfdata"))
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *words]
    statuses, outputs = run_together(pinned, words, timeout=300)
    assert statuses == [0, 0], outputs
    batches = tfdata.batches

    def together(split, *, process, processes, **options):
        shares = [batches(split, process=share, processes=2, **options) for share in range(2)]
        while True:
            yield tuple(map(np.concatenate, zip(*map(next, shares))))

    monkeypatch.setattr(tfdata, "batches", together)
    options = {"data__crop": "letterbox", "data__pipeline": "tfdata", "total_kimg": 0.048, "log_kimg": 0.008}
    for one in ("two", "one"):  # and resumes what two have saved
        train_here(make_config(phantom_data, "dcgan28", **options), tmp_path / one)
    assert_same_losses(stats(tmp_path / "two"), stats(tmp_path / "one"))


# -- What is refused at the start


@multiprocess
def test_processes_that_differ_are_refused_on_both(phantom_data, tmp_path):
    folder = tmp_path / "run"
    statuses, outputs = run_together(
        command(*train(folder, phantom_data)), command(*train(folder, phantom_data, optimizer__b1=0.9))
    )
    assert statuses == [2, 2], outputs
    for output in outputs:
        (line,) = lines(output, "^idrid-jax: ")
        assert "process 1 has config.optimizer.b1 = 0.9, process 0 has 0.5" in line and "Traceback" not in output
    assert not folder.exists()


@pytest.mark.parametrize("name", ["jax", "flax", "idrid_jax", "revision", "release", "config.mesh.data"])
def test_what_differs_is_named(config, monkeypatch, name):
    facts = run_dir.shared_facts(config, loop.find_release(config))
    assert not {f"config.{field}" for field in run_dir.MAY_DIFFER} & facts.keys()
    monkeypatch.setattr(multihost, "gather", lambda value: [value, value])
    multihost.check_same(facts)
    monkeypatch.setattr(multihost, "gather", lambda value: [value, value | {name: "other"}])
    with pytest.raises(UserError, match=f"process 1 has {re.escape(name)} = 'other', process 0 has "):
        multihost.check_same(facts)


@multiprocess
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_never_comes_is_reported_in_one_line(phantom_data, tmp_path, index):
    where = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2", "--join_timeout=2"]
    status, output = run(*command(*train(tmp_path / "run", phantom_data), *where, f"--process_id={index}"))
    assert status == 2 and output.count("\n") == 1, output
    assert output.startswith(f"idrid-jax: process {index}: after 2 s ") and "--join_timeout" in output


@multiprocess
def test_a_port_in_use_is_refused_in_one_line(phantom_data, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = [f"--coordinator_address=127.0.0.1:{server.getsockname()[1]}", "--num_processes=2", "--process_id=0"]
        status, output = run(*command(*train(tmp_path / "run", phantom_data), *where))
    assert status == 2 and len(lines(output, "^idrid-jax: .*--coordinator_address")) == 1 and "Traceback" not in output


def test_a_grade_that_one_share_lacks_is_refused_on_all():
    grades = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 3], np.int32)
    tfdata.check_shares(grades, "natural", 2)
    tfdata.check_shares(grades, "balanced", 1)
    with pytest.raises(UserError, match=f"process 1 of 2: .*no photograph of grade {GRADES[4]} .*'resident'"):
        tfdata.check_shares(grades, "balanced", 2)


@pytest.mark.parametrize("n, count", [(10, 3), (11, 4), (413, 8), (3, 5)])
def test_shares_are_those_of_tfds(n, count):
    tfds = pytest.importorskip("tensorflow_datasets")
    of = {"train": types.SimpleNamespace(num_examples=n)}
    for process in range(count):
        (theirs,) = tfds.split_for_jax_process("train", process_index=process, process_count=count).to_absolute(of)
        photographs = np.arange(n)
        assert list(photographs[tfdata.share(n, process, count)]) == list(photographs[theirs.from_ : theirs.to])


def test_every_process_has_as_many_devices_in_the_mesh(monkeypatch):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(process_index=0)] * 2))
    multihost.check_devices(mesh)
    monkeypatch.setattr(multihost, "process_count", lambda: 2)
    with pytest.raises(UserError, match="config.mesh uses 2, 0 devices of the 2 processes"):
        multihost.check_devices(mesh)


# -- Who is this process?

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[03-04]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4",
}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
LAUNCHERS = {  # environment, whether there are several processes, this one's number
    "srun": (SLURM, True, 2),
    "mpirun": (MPI, True, 1),
    "a TPU slice on Kubernetes": ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, True, 1),
    "an indexed job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}, True, 3),
    "a laptop": ({}, False, 0),
    "salloc without srun": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[03-04]"}, False, 0),
    "salloc's interactive step": (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False, 0),
    "a pod of no job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, 0),
    "an address only": ({"JAX_COORDINATOR_ADDRESS": "n03:5000"}, False, 0),
}


@pytest.fixture
def bare(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "TPU_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_environment_decides(bare, monkeypatch, launcher):
    environment, several, index = LAUNCHERS[launcher]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert multihost.find_cluster() == ({} if several else None)
    assert multihost.launched_process_id() == index


@pytest.mark.parametrize("arguments, message", [
    (("host:1", None, None), "--num_processes and --process_id is missing"),
    (("", 2, None), "--coordinator_address and --process_id is missing"),
    (("host:1", 2, 2), r"--process_id 2: must be in 0..1"),
    (("host", 2, 0), "--coordinator_address 'host': write HOST:PORT"),
    (("host:99999", 2, 0), "write HOST:PORT"),
])  # fmt: skip
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        multihost.find_cluster(*arguments)


def test_arguments_come_before_the_environment(bare, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    given = {"coordinator_address": "host:12", "num_processes": 3, "process_id": 1}
    assert multihost.find_cluster("host:12", 3, 1) == given
    assert multihost.find_cluster("host:12", 1, 0) is None
    local = multihost.find_cluster("127.0.0.1:12", 3, 1)
    assert local["coordinator_bind_address"] == "127.0.0.1:12"  # not on every network


@multiprocess
def test_an_environment_in_which_jax_finds_no_cluster(bare):
    program = (
        "from idrid_jax.training import multihost as m\nwith m.initialize(): print(m.process_count(), m.gather(3))"
    )
    status, output = run(sys.executable, "-c", program, TPU_WORKER_HOSTNAMES="localhost")
    assert (status, output) == (0, "1 [3]\n")
    status, output = run(sys.executable, "-c", program, **MPI)  # without the address that JAX reads
    assert status == 1 and lines(output, "UserError: .*pass --coordinator_address, --num_processes"), output


@pytest.mark.parametrize("words", [("evaluate",), ("sample", "--out=x", "--count=1")])
def test_process_0_evaluates_alone(bare, monkeypatch, tmp_path, capsys, words):
    for name, value in MPI.items():
        monkeypatch.setenv(name, value)
    assert cli.main([words[0], f"--workdir={tmp_path}", *words[1:]]) == 0
    assert "process 1 ends" in capsys.readouterr().out


# -- The run directory


def test_a_run_directory_is_locked_until_the_end(tmp_path):
    with run_dir.lock(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"another run \(host .*, pid {os.getpid()}, since 20.*\) trains there"):
            with run_dir.lock(tmp_path / "run"):
                pass
    with run_dir.lock(tmp_path / "run"):  # and again
        pass
    assert list((tmp_path / "run").iterdir()) == []


@multiprocess
def test_a_killed_run_releases_the_lock(tmp_path):
    program = """
        import sys, time, pathlib
        from idrid_jax.training import run_dir
        with run_dir.lock(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(100)
    """
    with started(sys.executable, "-c", textwrap.dedent(program), tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"pid {process.pid}"), run_dir.lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with run_dir.lock(tmp_path):
            pass


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with run_dir.lock(tmp_path):
        pass
    assert "no locks" in capsys.readouterr().err


# -- Exchange and loss of processes, without training


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from idrid_jax.errors import UserError
from idrid_jax.training import multihost, run_dir
address, count, index = [word.partition("=")[2] for word in sys.argv[1:]]
index = int(index)
def refuse(text):
    raise UserError(text)
with multihost.initialize(address, int(count), index, timeout=60):
"""


def python(body):
    """A command that runs `body` within `initialize`; it knows `index`, and `refuse(text)` raises UserError."""
    return [sys.executable, "-c", PROGRAM + textwrap.indent(textwrap.dedent(body), "    ")]


@multiprocess
def test_values_and_errors_reach_all_processes(tmp_path):
    body = """
            run_dir.LOCK_VISIBLE_SECONDS = 0.5
            print(multihost.gather({"x": index}), multihost.run_on_first(lambda: ["é" * 3000, index])[1], flush=True)
            for attempt in (
                lambda: multihost.run_on_first(lambda: refuse("no disk")),
                lambda: multihost.run_on_each(lambda: refuse("no data") if index == 1 else 0),
                lambda: multihost.run_on_each(lambda: refuse("no data")),
                lambda: run_dir.lock(Path("FOLDER", str(index))).__enter__(),
            ):
                try:
                    attempt()
                except UserError as error:
                    print(error, flush=True)
            refuse("the end")
    """.replace("FOLDER", str(tmp_path))
    statuses, outputs = run_together(*[python(body)] * 3)
    assert statuses == [2, 2, 2], outputs
    for output in outputs:
        found = [line for line in output.splitlines() if "Gloo" not in line]
        assert found[:4] == ["[{'x': 0}, {'x': 1}, {'x': 2}] 0", "no disk", "process 1: no data", "no data"]
        assert found[4].startswith(f"process 1: --workdir {tmp_path}/1 ") and found[5:] == ["idrid-jax: the end"]


@multiprocess
@pytest.mark.parametrize("dead", [0, 1])
def test_the_loss_of_one_ends_the_others(dead):
    body = f"""
            multihost.gather(0)
            if index == {dead}:
                os.kill(os.getpid(), signal.SIGKILL)
            multihost.gather(0)
            print("not reached")
    """
    start = time.monotonic()
    statuses, outputs = run_together(*[python(body)] * 3)
    assert time.monotonic() - start < 60
    for index, (status, output) in enumerate(zip(statuses, outputs, strict=True)):
        assert status == -9 if index == dead else status != 0 and "not reached" not in output
        assert index == dead or lines(output, "another process was lost|another task died"), output


@multiprocess
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_the_others(failing):
    body = f"""
            multihost.gather(0)
            if index == {failing}:
                refuse("full disk")
            multihost.gather(0)
    """
    statuses, outputs = run_together(*[python(body)] * 2)
    assert statuses[failing] == 2 and statuses[1 - failing] != 0
    assert lines(outputs[failing], "^idrid-jax: full disk$")
