"""Several processes are one run: the same losses, one folder, and each fault ends in a line that names it."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import types

import jax
import numpy as np
import pytest
from conftest import make_config, stats, steps
from launched import ENVIRONMENT, LOCAL, command, lines, pid_of, run, started, train, wait_for

from idrid_jax.data import splits
from idrid_jax.data.layout import GRADES
from idrid_jax.data.pipeline import tfdata
from idrid_jax.errors import UserError
from idrid_jax.training import loop, multihost, run_dir
from idrid_jax.training.checkpoint import FOLDER
from idrid_jax.training.peers import split_address

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")


def assert_same_losses(rows, wanted):
    """float32: the sums over devices are in another order, and Adam's first steps make much of little."""
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, one in zip(rows, wanted):
        for name in ("loss_d", "loss_g", "d_real", "d_fake_after"):
            tolerance = 1e-4 if row["step"] < 4 else 2e-3 if row["step"] < 10 else 2e-2
            assert row[name] == pytest.approx(one[name], rel=tolerance), (row["step"], name)


# -- One run, really


@linux
def test_two_processes_are_one_run_whatever_happens(phantom_data, tmp_path):
    """Resident; SIGTERM to one, then the death of one, then to the end: the losses of one process, undisturbed."""
    folder = tmp_path / "run"
    words = LOCAL, 2, "--", *train(folder, phantom_data, total_kimg=80)
    words = [*words[0], *words[1:]]
    saved = lambda step: any(int(path.name) >= step for path in (folder / FOLDER).glob("[0-9]*") if path.name.isdigit())
    with started(*words) as process:
        wait_for(lambda: saved(4), process)
        os.kill(pid_of(folder, 1), signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (line,) = lines(output, "interrupted")  # one process tells
    first = int(re.search(r"saved step (\d+); the same command goes on", line)[1])
    assert steps(folder)[-1] == first and not (folder / run_dir.LOCK).exists()

    with started(*words) as process:
        wait_for(lambda: saved(first + 1), process)
        victim = pid_of(folder, 1)
        status, refused = run(*command(*train(folder, phantom_data)))  # a second run, of one process
        assert status == 2 and f"--workdir {folder}: another run (host " in refused and "Traceback" not in refused
        start = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        assert time.monotonic() - start < 60
    assert process.returncode == 128 + signal.SIGKILL, output
    assert (
        len(lines(output, rf"^idrid-jax: process 1 \(host .*, pid {victim}\) is gone .*the same command resumes$")) == 1
    )
    assert lines(output, rf"^local: process 1 \(pid {victim}\) ended with status 137, by SIGKILL")
    assert lines(output, f"resuming from step {first}") and "Traceback" not in output

    # what two have saved, one goes on with on eight devices; then two of four devices each; then one on one
    last = steps(folder)[-1] + 6
    alone = lambda where, until, devices: loop.train(
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


def test_two_processes_go_back_together(phantom_data, tmp_path):
    """Each finds the same numbers, and restores its part of the same checkpoint; one of them tells."""
    folder, rate = tmp_path / "run", 1e30
    config = make_config(phantom_data, "dcgan28", data__crop="letterbox", total_kimg=0.032, log_kimg=0.008)
    loop.train(config, folder)
    record = folder / "config.json"
    record.write_text(record.read_text().replace('"d_learning_rate": 0.0002', f'"d_learning_rate": {rate}'))
    words = train(folder, phantom_data, on_divergence="restore", optimizer__d_learning_rate=rate, data__pipeline="tfdata")
    status, output = run(*LOCAL, 2, "--", *words)
    assert status == 2 and "Traceback" not in output, output
    assert [line.rpartition("(")[2] for line in lines(output, "back to step 4, ")] == [
        f"{i} of at most 3 times)" for i in (1, 2, 3)
    ], output
    assert lines(output, "training went back 3 times, to updates 1/8 as large; the last good checkpoint stays"), output
    assert steps(folder) == [4]


def test_four_processes_stream_their_shares(phantom_data, tmp_path, monkeypatch):
    """The losses of one process that is fed the four shares' batches, one after the other."""
    status, output = run(*LOCAL, 4, "--", *train(tmp_path / "four", phantom_data, total_kimg=0.032, data__pipeline="tfdata"))
    assert status == 0, output
    batches = tfdata.batches

    def together(images, grades, *, process, processes, **options):
        shares = [batches(images, grades, process=share, processes=4, **options) for share in range(4)]
        while True:
            yield tuple(map(np.concatenate, zip(*map(next, shares))))

    monkeypatch.setattr(tfdata, "batches", together)
    options = {"data__crop": "letterbox", "data__pipeline": "tfdata", "total_kimg": 0.048, "log_kimg": 0.008}
    for one in ("four", "one"):  # and goes on with what four have saved
        loop.train(make_config(phantom_data, "dcgan28", **options), tmp_path / one)
    assert_same_losses(stats(tmp_path / "four"), stats(tmp_path / "one"))


# -- What is refused at the start


def both(first, second, *, port=None):
    """Processes 0 and 1 of 2, each with words of its own -> their statuses and outputs."""
    where = [f"--coordinator_address=127.0.0.1:{port or multihost._free_port()}", "--num_processes=2"]
    with (
        started(*command(*first, *where, "--process_id=0")) as a,
        started(*command(*second, *where, "--process_id=1")) as b,
    ):
        outputs = [process.communicate(timeout=100)[0] for process in (a, b)]
    return [a.returncode, b.returncode], outputs


def test_processes_that_differ_are_refused_on_both(phantom_data, tmp_path):
    folder = tmp_path / "run"
    statuses, outputs = both(train(folder, phantom_data), train(folder, phantom_data, optimizer__b1=0.9))
    assert statuses == [2, 2], outputs
    says = "process 1 has config.optimizer.b1 = 0.9, process 0 has 0.5: start all with the same command"
    for output in outputs:  # whoever is first to fail is quoted by the other
        (told,) = lines(output, "^idrid-jax: ")
        assert re.match(rf"idrid-jax: (process \d \(host .*\) stopped: )?{re.escape(says)}", told), output
        assert "Traceback" not in output
    assert not folder.exists()


def test_folders_that_are_not_one_are_refused_on_both(tmp_path):
    statuses, outputs = meet(
        "from pathlib import Path; from idrid_jax.training import processes, workdir; "
        f"multihost._current, run_dir.VISIBLE = peers, 0.5; "
        f"run_dir.held(Path({str(tmp_path)!r}, str(index))).__enter__()",
        count=2,
    )
    assert statuses == [2, 2]
    says = rf"UserError: process 1: --workdir {tmp_path}/1 on host .* is not process 0's folder: .*share\n"
    assert all(re.fullmatch(says, output) for output in outputs), outputs


class Current:
    """Stands for this process's peers: the others say what they are told to."""

    index, count, timeout = 0, 2, 1.0

    def __init__(self, **theirs):
        self.theirs = theirs

    def gather(self, name, make, *, timeout=None):
        self.mine = make()
        return [self.mine, self.mine | self.theirs]


@pytest.mark.parametrize(
    "name, value",
    [
        ("jax", "0.1"),
        ("flax", "0.1"),
        ("idrid_jax", "9"),
        ("revision", "abc"),
        ("release", "0123 (x)"),
        ("config.mesh.data", 7),
    ],
)
def test_what_differs_is_named(config, monkeypatch, name, value):
    monkeypatch.setattr(multihost, "_current", Current(**{name: value}))
    with pytest.raises(UserError, match=f"process 1 has {name} = {re.escape(repr(value))}, process 0 has "):
        multihost.check_same(config, lambda: splits.find_release(config))
    monkeypatch.setattr(multihost, "_current", Current())
    assert multihost.check_same(config, lambda: splits.find_release(config)).fingerprint
    assert not {f"config.{field}" for field in multihost.MAY_DIFFER} & multihost.current().mine.keys()


def test_a_worker_that_never_comes_is_reported(phantom_data, tmp_path):
    where = [f"--coordinator_address=127.0.0.1:{multihost._free_port()}", "--num_processes=3", "--join_timeout=2"]
    for index, says in ((0, r"1 of 3 processes are there after 2 s; not there: 1, 2: .*--join_timeout"),
                        (1, r"process 1 of 3: process 0 did not answer at 127.0.0.1:\d+ within 2 s")):  # fmt: skip
        status, output = run(*command(*train(tmp_path / "run", phantom_data), *where, f"--process_id={index}"))
        assert status == 2 and output.count("\n") == 1 and re.match(f"idrid-jax: {says}", output), output


def test_a_grade_that_one_share_lacks_is_refused_on_all():
    grades = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 3], np.int32)
    tfdata.check_shares(grades, "natural", 2)
    tfdata.check_shares(grades, "balanced", 1)
    for process in (0, 1):
        with pytest.raises(UserError, match=f"process 1 of 2: .*no photograph of grade {GRADES[4]} .*'resident'"):
            tfdata.batches(
                grades, grades, seed=0, batch_size=2, sampling="balanced", first_step=0, process=process, processes=2
            )


@pytest.mark.parametrize("n, count", [(10, 3), (11, 4), (413, 8), (3, 5)])
def test_shares_are_those_of_tfds(n, count):
    tfds = pytest.importorskip("tensorflow_datasets")
    of = {"train": types.SimpleNamespace(num_examples=n)}
    for process in range(count):
        (theirs,) = tfds.split_for_jax_process("train", process_index=process, process_count=count).to_absolute(of)
        photographs = np.arange(n)
        assert list(photographs[tfdata.share(n, process, count)]) == list(photographs[theirs.from_ : theirs.to])


def test_devices_of_some_processes_alone_are_refused(monkeypatch):
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(process_index=0)] * 2))
    multihost.check_devices(types.SimpleNamespace(devices=np.array([types.SimpleNamespace(process_index=0)])))
    monkeypatch.setattr(multihost, "_current", Current())
    with pytest.raises(UserError, match="within training.processes.joined"):
        multihost.check_devices(mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="config.mesh takes 2, 0 devices of the 2 processes"):
        multihost.check_devices(mesh)


# -- Who is this process?

LAUNCHERS = {
    "srun": (
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[03-04]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
         "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4"},
        multihost.Place("n03:61447", 4, 2, [0]),
    ),
    "mpirun": (
        {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
         "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        multihost.Place(f"10.96.0.1:{1531576320 // 4096 % 4096 + 61440}", 2, 1, [1]),
    ),
    "a laptop": ({}, None),
    "salloc without srun": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[03-04]"}, None),
    "salloc's interactive step": (
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n03", "SLURM_NTASKS": "4", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"},
        None,
    ),
    "a pod of no job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    "an address alone": ({"JAX_COORDINATOR_ADDRESS": "n03:5000"}, None),
}  # fmt: skip


@pytest.fixture
def bare(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "TPU_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)


@pytest.mark.filterwarnings("ignore:.*ubernetes")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launcher_says_who_this_process_is(bare, monkeypatch, launcher):
    environment, place = LAUNCHERS[launcher]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert multihost.place() == place


@pytest.mark.parametrize("arguments, says", [
    (("host:1", None, None), "--num_processes and --process_id is missing"),
    (("", 2, None), "--coordinator_address and --process_id is missing"),
    (("host:1", 2, 2), r"--process_id 2: must be in 0..1"),
    (("host", 2, 0), "--coordinator_address 'host': write HOST:PORT"),
    (("host:99999", 2, 0), "write HOST:PORT"),
])  # fmt: skip
def test_arguments_that_cannot_be(arguments, says):
    with pytest.raises(UserError, match=says):
        multihost.place(*arguments)


def test_arguments_come_before_the_environment(bare, monkeypatch):
    for name, value in LAUNCHERS["srun"][0].items():
        monkeypatch.setenv(name, value)
    assert multihost.place("host:12", 3, 1) == multihost.Place("host:12", 3, 1)
    assert multihost.place("host:12", 1, 0) is None
    assert split_address("[::1]:80") == ("::1", 80)


def test_process_0_evaluates_alone(bare, tmp_path):
    for words in (["evaluate", f"--workdir={tmp_path}"], ["sample", f"--workdir={tmp_path}", "--out=x", "--count=1"]):
        status, output = run(*command(*words), **LAUNCHERS["mpirun"][0])
        assert (status, output) == (0, f"{words[0]}: process 0 does it alone; process 1 has nothing to do\n")


# -- The folder


def test_a_folder_is_held_until_the_end(tmp_path):
    with run_dir.held(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"another run \(host .*, pid {os.getpid()}, since 20.*\) trains there"):
            with run_dir.held(tmp_path / "run"):
                pass
    with run_dir.held(tmp_path / "run"):  # and again
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_run_holds_nothing(tmp_path):
    program = """
        import sys, time, pathlib
        from idrid_jax.training import run_dir
        with run_dir.held(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(100)
    """
    with started(sys.executable, "-c", textwrap.dedent(program), tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"pid {process.pid}"), run_dir.held(tmp_path):
            pass
        process.kill()
        process.wait()
        with run_dir.held(tmp_path):
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with run_dir.held(tmp_path):
        pass
    assert "knows no locks" in capsys.readouterr().err


# -- The line between processes, without JAX

MEET = """
    import sys, time
    from idrid_jax.errors import UserError
    from idrid_jax.training.peers import Peers
    port, index, count = map(int, sys.argv[1:])
    def refuse(what):
        raise UserError(what)
    try:
        peers = Peers(f"127.0.0.1:{port}", index, count, 20)
        BODY
        peers.end()
    except UserError as error:
        print("UserError:", error)
        sys.exit(2)
"""


def meet(body, count=3, places=None):
    """`body` on each of `count` processes -> their statuses and outputs. places: (index, count) that each is told."""
    program = textwrap.dedent(MEET).replace("BODY", body)
    port = multihost._free_port()
    run = lambda i, n: subprocess.Popen(
        [sys.executable, "-c", program, str(port), str(i), str(n)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    running = [run(*place) for place in places or [(index, count) for index in range(count)]]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    return [process.returncode for process in running], outputs


def test_what_each_says_all_hear():
    statuses, outputs = meet("print(peers.gather('a', lambda: index * 2), peers.first('b', lambda: {'x': index}))")
    assert (statuses, outputs) == ([0, 0, 0], ["[0, 2, 4] {'x': 0}\n"] * 3)


def test_the_mistake_of_one_is_raised_on_all():
    statuses, outputs = meet("peers.gather('a', lambda: refuse('no disk') if index == 1 else 0)")
    assert (statuses, outputs) == ([2] * 3, ["UserError: process 1: no disk\n"] * 3)
    statuses, outputs = meet("peers.gather('a', lambda: refuse('no disk'))")
    assert (statuses, outputs) == ([2] * 3, ["UserError: no disk\n"] * 3)


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_one_ends_all_and_names_it(dead):
    body = f"import os, signal; os.kill(os.getpid(), 9) if index == {dead} else time.sleep(100)"
    start = time.monotonic()
    statuses, outputs = meet(body)
    assert time.monotonic() - start < 20
    assert statuses == [-9 if index == dead else 1 for index in range(3)]
    for index, output in enumerate(outputs):
        assert index == dead or re.fullmatch(rf"idrid-jax: process {dead} \(host .*, pid \d+\) is gone .*\n", output)


def test_who_fails_says_why_on_all():
    statuses, outputs = meet("peers.fail('full disk', 2) if index == 2 else time.sleep(100)")
    assert statuses == [2, 2, 2] and outputs[2] == "idrid-jax: full disk\n"
    for output in outputs[:2]:
        assert re.fullmatch(r"idrid-jax: process 2 \(host .*\) stopped: full disk\n", output)


def test_who_is_late_is_named():
    body = "time.sleep(100) if index == 1 else peers.gather('start', lambda: 0, timeout=1)"
    statuses, outputs = meet(f"try:\n        {body}\n    except UserError as e: peers.fail(str(e), 2)")
    assert statuses == [2, 2, 2]
    assert re.search(r"after 1 s still waiting, at 'start', for process 1 \(host .*\)$", outputs[0].strip())


@pytest.mark.parametrize("places, says", [
    ([(0, 3), (1, 3), (1, 3)], r"process 1 is there twice: process 1 \(host .*\), and host .*its own --process_id"),
    ([(0, 3), (1, 2)], "process 1 was started as one of 2, process 0 as one of 3: .*the same --num_processes"),
])  # fmt: skip
def test_places_that_do_not_fit_are_refused(places, says):
    statuses, outputs = meet("pass", places=places)
    assert statuses == [2] * len(places)
    assert all(re.fullmatch(f"idrid-jax: {says}.*\n", output) for output in outputs), outputs


def test_a_stranger_at_the_door_is_let_go():
    body = "peers.gather('a', lambda: 0)"
    program = textwrap.dedent(MEET).replace("BODY", body)
    port = str(multihost._free_port())
    with started(sys.executable, "-c", program, port, 0, 2) as first:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"kind": "hello"}\n', b""):
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                        stranger.sendall(words)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
        assert run(sys.executable, "-c", program, port, 1, 2) == (0, "")
        assert first.wait(20) == 0
