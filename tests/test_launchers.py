"""Launchers: mpirun and Slurm where they are installed, local.sh, and the files for clouds, which are read only."""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_config, stats, steps
from conftest import train as train_here
from launched import ENVIRONMENT, ROOT, command, free_port, lines, run, train
from test_multihost import assert_same_losses

from idrid_jax import config as config_lib
from idrid_jax.training import multihost
from idrid_jax.training.run_dir import RunDir

multiprocess = pytest.mark.multiprocess
platform_lowering = True  # as the processes that are compared
LOSE_PROCESS_1 = """
import os, signal
from idrid_jax.training import multihost
with multihost.initialize():
    multihost.gather(0)
    if multihost.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    multihost.gather(0)
"""
SBIN = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"
SLURM = ("srun", "sbatch", "slurmctld", "slurmd", "munged")
LAUNCH = ROOT / "launch"


@multiprocess
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun: apt-get install openmpi-bin")
def test_mpirun_trains_and_names_the_lost_process(phantom_data, tmp_path):
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    status, output = run(*mpirun, *command(*train(tmp_path / "run", phantom_data, total_kimg=0.016)))
    if "MPICH" in output:
        pytest.skip("another MPI than Open MPI")
    assert status == 0, output
    assert len(lines(output, "^step 2 .*: images, stats.jsonl and checkpoints in")) == 1
    alone(tmp_path / "alone", phantom_data, total_kimg=0.016)
    assert_same_losses(stats(tmp_path / "run"), stats(tmp_path / "alone"))
    status, output = run(*mpirun, sys.executable, "-c", LOSE_PROCESS_1, timeout=120)
    assert status != 0 and lines(output, "process rank 1 .*signal 9"), output


def alone(folder, data_dir, **changes):
    """The same run in one process."""
    train_here(make_config(data_dir, "dcgan28", data__crop="letterbox", log_kimg=0.008, **changes), folder)


# -- Slurm


@contextlib.contextmanager
def slurm(folder: Path):
    """Start a Slurm cluster of this machine; yields the environment in which srun finds it."""
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    ports = [free_port() for _ in range(2)]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(f"""
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    conf = str(folder / "slurm.conf")
    files = {"key-file": "key", "socket": "munge", "pid-file": "munge.pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--force", "--foreground", *(f"--{name}={folder / file}" for name, file in files.items())]
    environment = ENVIRONMENT | {"PATH": SBIN, "SLURM_CONF": conf}
    environment = {name: value for name, value in environment.items() if name == "SLURM_CONF" or "SLURM_" not in name}
    with contextlib.ExitStack() as daemons, (folder / "daemons").open("w") as log:

        def start(*words):
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)

        start(*munged)
        until(lambda: (folder / "munge").exists())
        start("slurmctld", "-D", "-f", conf)
        start("slurmd", "-D", "-f", conf)
        ask = lambda: (
            subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        )
        if not until(lambda: ask().strip() == "idle", 30, fail=False):
            pytest.skip(f"Slurm does not start here: {(folder / 'daemons').read_text()[-500:]}")
        yield environment


def until(condition, seconds=120.0, fail=True):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found or not fail
    return found


@multiprocess
@pytest.mark.skipif(
    not all(shutil.which(name, path=SBIN) for name in SLURM), reason="no Slurm: apt-get install slurm-wlm munge"
)
def test_slurm_runs_saves_and_queues_again(phantom_data, tmp_path_factory):
    """launch/slurm.sbatch, signalled as before the time limit; then srun with two tasks, resumed and killed."""
    tmp_path = tmp_path_factory.mktemp("s")  # short: a socket's path is
    folder = tmp_path / "run"
    with slurm(tmp_path / "slurm") as environment:
        ask = lambda *words: subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        state = lambda: dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "job", job)))
        where = ["--parsable", "--ntasks=2", "--cpus-per-task=1", f"--output={tmp_path / 'out'}", f"--chdir={ROOT}"]
        job = ask("sbatch", *where, str(LAUNCH / "slurm.sbatch"), *train(folder, phantom_data, total_kimg=80)).strip()
        output = lambda: (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""
        until(lambda: (RunDir(folder).checkpoints / "4").is_dir() or state()["JobState"] != "RUNNING" and output(), 400)
        assert (RunDir(folder).checkpoints / "4").is_dir(), output()
        ask("scancel", "--signal=USR1", "--batch", job)
        until(lambda: state()["Restarts"] == "1", 60)
        ask("scancel", job)
        assert len(lines(output(), r"interrupted: saved step \d+")) == 1, output()
        last = steps(folder)[-1] + 2
        until(lambda: "RUNNING" not in ask("squeue", "-h", "-o", "%T"))
        done = subprocess.run(
            ["srun", "--ntasks=2", *command(*train(folder, phantom_data, total_kimg=last * 8 / 1000))],
            env=environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lost = subprocess.run(
            ["srun", "--ntasks=2", "--kill-on-bad-exit=1", sys.executable, "-c", LOSE_PROCESS_1],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert lost.returncode != 0 and re.search("task 1: Killed", lost.stderr), lost.stderr
    assert steps(folder)[-1] == last and "resuming from step" in done.stderr
    alone(tmp_path / "alone", phantom_data, total_kimg=last * 8 / 1000)
    assert_same_losses(stats(folder), stats(tmp_path / "alone"))


# -- Clouds: nothing is rented; the files are read as their programs would read them


def test_tpu_pod_prints_its_commands_in_a_dry_run(tmp_path):
    def dry_run(*words, **environment):
        done = subprocess.run(
            ["bash", LAUNCH / "tpu_pod.sh", *words],
            env=os.environ | {"DRY_RUN": "1"} | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    status, output = dry_run("create", "pod", "v5litepod-16", SPOT="1", ZONE="here")
    assert status == 0 and output.startswith(
        "gcloud compute tpus queued-resources create pod --node-id=pod --zone=here "
    )
    assert "--accelerator-type=v5litepod-16" in output and "--spot" in output
    assert "--spot" not in dry_run("create", "pod", "v5litepod-16", SPOT="")[1]
    status, output = dry_run("run", "pod", "--", "train", "--workdir", "/a b")
    assert status == 0 and "--worker=all" in output and r"-m idrid_jax train --workdir /a\ b" in output
    assert "[p]ython" in dry_run("stop", "pod")[1]  # not the shell that runs it
    status, output = dry_run("run", "pod", "--", "evaluate", "--workdir", "/a")
    assert status == 0 and "--worker=0" in output and "JAX_PLATFORMS=cpu" in output
    for words in ((), ("run", "pod"), ("run", "pod", "--"), ("run", "pod", "train"), ("create", "pod"), ("fly", "pod")):
        assert dry_run(*words) == (2, "")


def test_tpu_pod_installs_what_is_committed(tmp_path):
    """With a fake gcloud that stores its archive, which must hold the package and the installer."""
    keep = f'case "$word" in *.tar.gz) [ -f "$word" ] && cp "$word" {tmp_path}/got;; esac'
    (tmp_path / "gcloud").write_text(f"#!/bin/sh\nfor word; do {keep}; done\n")
    (tmp_path / "gcloud").chmod(0o755)
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a checkout")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", LAUNCH / "tpu_pod.sh", "install", "pod"], env=os.environ | {"PATH": path}, check=True)
    names = subprocess.run(["tar", "tzf", tmp_path / "got"], capture_output=True, text=True, check=True).stdout.split()
    assert {"idrid_jax/launch/install.sh", "idrid_jax/idrid_jax/training/loop.py"} <= set(names)


def parsed(words):
    """The flags of a command line without its first words `python -m idrid_jax`, which must be valid."""
    from absl import flags

    from idrid_jax.cli import COMMANDS, parse

    values = flags.FlagValues()
    COMMANDS[words[0]].define(values, words)
    parse(words[0], values, words[1:])
    config_lib.validated(values.config)
    return values


def test_the_jobset_fits_its_slice(monkeypatch):
    """Fields of JobSet v1alpha2 and batch/v1 only; as many pods as hosts; a valid command."""
    monkeypatch.chdir(ROOT)
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"].keys() <= {"failurePolicy", "replicatedJobs", "successPolicy", "network", "suspend"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    job = replicated["template"]["spec"]
    assert job.keys() == {"parallelism", "completions", "completionMode", "backoffLimit", "template"}
    pod = job["template"]["spec"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    assert job["parallelism"] == job["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    script = container["command"][2]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    assert parsed(container["args"]).workdir == "/shared/run"


def test_skypilot_nodes_connect(monkeypatch, tmp_path):
    """`run` with the variables of SkyPilot on node 1 of 2 and a fake python that prints its arguments."""
    monkeypatch.chdir(ROOT)
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["setup"] == "bash launch/install.sh cuda"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "launch").symlink_to(LAUNCH)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    given = {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = os.environ | task["envs"] | given
    words = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[:2] == ["-m", "idrid_jax"]
    values = parsed(words[2:])
    found = multihost.find_cluster(values.coordinator_address, values.num_processes, values.process_id)
    assert found == {"coordinator_address": "10.0.0.4:8476", "num_processes": 2, "process_id": 1}


# -- local.sh and its processes, without JAX


def local(tmp_path, script, n=2, **environment):
    """launch/local.sh with a fake python, a shell script that has its process index in $id."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[ "$1" != -c ] || exec {sys.executable} "$@"\n'
        f'id="${{*: -1}}" id="${{id#*=}}"\n{script}\n'
    )
    python.chmod(0o755)
    return subprocess.Popen(
        ["bash", LAUNCH / "local.sh", str(n), "--", "train"],
        env=os.environ | {"PYTHON": str(python)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # bash cannot trap what was ignored when it began, as Ctrl-C is where pytest runs in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_local_numbers_its_processes_and_prefixes_lines(tmp_path):
    process = local(tmp_path, 'echo "$@"; echo "oops $id" >&2', n=3)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and sorted(errors.splitlines()) == [f"[{i}] oops {i}" for i in range(3)]
    found = [re.fullmatch(r"\[(\d)\] -m idrid_jax train --coordinator_address=127.0.0.1:(\d+) --num_processes=3 "
                          r"--process_id=(\d)", line) for line in output.splitlines()]  # fmt: skip
    assert all(found) and sorted(match[1] for match in found) == ["0", "1", "2"]
    assert all(match[1] == match[3] for match in found) and len({match[2] for match in found}) == 1


def test_local_returns_the_first_failure(tmp_path):
    process = local(tmp_path, 'if [ "$id" = 1 ]; then exit 7; fi; sleep 0.5; exit 3')
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 7
    assert re.search(r"^local: process 1 \(pid \d+\) ended with status 7; the others end too$", errors, re.MULTILINE)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_sigterm_and_ctrl_c(tmp_path, sent):
    process = local(tmp_path, 'trap "echo got $id; exit 0" TERM; echo here; while :; do sleep 0.05; done')
    for _ in range(2):
        assert process.stdout.readline().endswith("here\n")
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and sorted(output.splitlines()) == ["[0] got 0", "[1] got 1"]


@pytest.mark.parametrize(
    "visible, gpus",
    [
        ("4,5", ["4", "5"]),
        ("1,3,5,7,9", ["1,3", "5,7,9"]),
        ("", ["", ""]),  # none
        (None, ["0,1", "2,3"]),  # all that nvidia-smi lists
    ],
)
def test_local_divides_gpus(tmp_path, monkeypatch, visible, gpus):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nseq 0 3\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    process = local(tmp_path, 'echo "$CUDA_VISIBLE_DEVICES"', **given)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert sorted(output.splitlines()) == [f"[{i}] {some}" for i, some in enumerate(gpus)]


def test_local_refuses_more_processes_than_gpus(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    process = local(tmp_path, "echo never", n=3, CUDA_VISIBLE_DEVICES="0")
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("local: 3 processes and 1 GPUs: ") and "JAX_PLATFORMS=cpu" in errors
    process = local(tmp_path, "echo here", n=3, CUDA_VISIBLE_DEVICES="0", JAX_PLATFORMS="cpu")
    assert process.communicate(timeout=30)[0].count("here") == 3


@pytest.mark.parametrize("words", [(), ("2",), ("0", "--", "train"), ("2", "train"), ("two", "--", "train")])
def test_local_prints_its_usage(words):
    done = subprocess.run(["bash", LAUNCH / "local.sh", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("local: usage: ") and done.stderr.count("\n") == 1
