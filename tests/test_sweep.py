"""Sweeps: sweep files, the order and resources of runs, results, interruption and resumption, Slurm arrays."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import made_run
import pandas as pd
import pytest
import sweep_command

from idrid_jax import cli
from idrid_jax import config as config_lib
from idrid_jax.data.manifest import find_prepared
from idrid_jax.data.prepare import prepare
from idrid_jax.sweep import definition, job, plot, results

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
USE_STAND_IN = "import pytest, sweep_command; sweep_command.use(pytest.MonkeyPatch())"
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
TWO = "for rate in (1e-4, 2e-4): yield {'optimizer.g_learning_rate': rate}"
SLOW, FAST = "g_learning_rate=0.0001", "g_learning_rate=0.0002"  # their folders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    prepare(made_run.write_release(folder / "made up"), folder / "data", tfds=False)
    return folder / "data"


@pytest.fixture
def file(tmp_path, data):
    """Writes a sweep file with the body of sweep() and a last statement of get_config()."""

    def write(body=TWO, common="pass"):
        path.write_text(f"""from idrid_jax.config import base
import numpy as np

def get_config():
    config = base(__file__, {os.path.relpath(ROOT / "configs" / "dcgan28.py", tmp_path)!r})
    config.data.data_dir = {str(data)!r}
    config.batch_size, config.total_kimg, config.snapshot_kimg, config.log_kimg = 8, 0.08, 0.04, 0.016
    {common}
    return config

def sweep():
    {body}
""")
        return path

    path = tmp_path / "some_sweep.py"
    write()
    return write


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


class Blank:
    """A figure that takes no time to draw."""

    def savefig(self, file, **_):
        file.write(b"\x89PNG")


@pytest.fixture
def sweep(file, tmp_path, workdir, monkeypatch, capsys):
    """Runs `idrid-jax sweep` with stand-in commands and without a picture; returns status and output."""
    sweep_command.use(monkeypatch)
    monkeypatch.setattr(plot, "sweep_figure", lambda *_, **__: Blank())

    def run(*arguments):
        capsys.readouterr()
        status = cli.main(["sweep", f"--config={tmp_path / 'some_sweep.py'}", f"--workdir={workdir}", *arguments])
        out, err = capsys.readouterr()
        return status, out + err

    return run


@pytest.fixture
def process(file, tmp_path, workdir):
    """Starts `idrid-jax sweep` with stand-in commands in a process, which ends with the test at the latest."""
    started = []

    def start(*arguments):
        code = f"{USE_STAND_IN}; import sys; from idrid_jax.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["sweep", f"--config={tmp_path / 'some_sweep.py'}", f"--workdir={workdir}", *arguments]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": PYTHONPATH},
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def starts(workdir, command="train"):
    path = workdir / "starts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["command"] == command]


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)


def wait_until_started(workdir, *names, steps=2):
    """Wait until runs have saved so many steps."""
    wait_until(lambda: all(len(list((workdir / name / "checkpoints").glob("*"))) >= steps for name in names))


def csv(workdir):
    return pd.read_csv(workdir / results.CSV).set_index("name")


# Sweep files


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_valid(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = f"configs/sweeps/{path.name}"
    assert f"idrid-jax sweep --config {name} --workdir runs/{path.stem}" in module.__doc__
    runs = definition.read_sweep(path, module.get_config()).runs
    assert len({run.name for run in runs}) == len(runs) == len(list(module.sweep())) > 1


def test_runs_are_the_configuration_with_their_overrides(file):
    path = file(
        "for rate in np.geomspace(1e-4, 1e-2, 3): yield {'optimizer.g_learning_rate': rate, 'ema_kimg': 1}\n"
        "    yield {'data.flip': True, 'batch_size': np.int64(4)}\n    yield {}"
    )
    config = cli.parsing.load_config(str(path))
    runs = definition.read_sweep(path, config).runs
    assert [run.name for run in runs] == [
        *(f"ema_kimg=1.0,g_learning_rate={rate}" for rate in ("0.0001", "0.001", "0.01")),
        "batch_size=4,flip=true",
        "base",
    ]
    before = config_lib.flatten(config)
    for run in runs:
        assert config_lib.flatten(run.config) == before | run.overrides
        assert all(type(value) in (float, int, bool) for value in run.overrides.values())
    assert config_lib.flatten(config) == before  # runs do not share changes


def test_a_folder_name_depends_on_the_overrides_only():
    config = config_lib.default_config()
    name = lambda **overrides: definition.folder_name(
        {key.replace("__", "."): value for key, value in overrides.items()}, config
    )
    assert name(seed=1, batch_size=4) == name(batch_size=4, seed=1) == "batch_size=4,seed=1"
    assert name(mesh__data=2) == "mesh.data=2"  # "data" alone is a group
    odd = [name(init_from=path) for path in ("runs/a b", "runs/a_b", "../runs/a b", "x" * 300, "x" * 301, "ü/'$(")]
    assert len(set(odd)) == len(odd)
    for made in odd:
        assert (
            re.fullmatch(r"[A-Za-z0-9_.,=+-]+", made)
            and len(made) <= 120
            and shlex.quote(made) == made.strip()
            or "=" in made
        )
        assert not made.startswith(".") and "/" not in made


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("yield {'batch_size': 0}", "run 2: config.batch_size = 0: must be at least 1"),
        ("yield {'batch_size': 8.5}", "run 2: config.batch_size = 8.5: must be a whole number"),
        ("yield {'batch_size': True}", "run 2: config.batch_size = True: must be a whole number"),
        ("yield {'optimizer.b1': 1.5}", r"run 2: config.optimizer.b1 = 1.5: must be in \[0, 1\)"),
        ("yield {'optimizer.b1': None}", "run 2: config.optimizer.b1 = None: must be a number"),
        ("yield {'optimizer.g_learning_rate': 'high'}", "run 2: .*g_learning_rate = 'high': must be a number"),
        ("yield {'optimizer.g_learning_rat': 1}", "run 2: .*_rat = 1: no such field; did you mean optimizer.g_lea"),
        ("yield {'optimizer': {'b1': 0.5}}", "run 2: .*a group of fields; choose one of optimizer.b1, "),
        ("yield {3: 4}", "run 2: config.3 = 4: no such field"),
        ("yield {'network': 'dcgan29'}", "run 2: config.network = 'dcgan29': did you mean dcgan28"),
        ("yield {'mesh.data': 3}", "run 2: config.batch_size = 8 is not divisible by 3 devices"),
        ("yield {'mesh.data': 0}", "run 2: config.mesh.data = 0: "),
        ("yield {'checkpoint.best': 'kid_imagenets'}", "run 2: .*best = 'kid_imagenets': did you mean kid_im"),
        ("yield {'init_from': '/nowhere'}", "run 2: config.init_from = '/nowhere': no run is there"),
        ("yield {'data.release': 'abc'}", "run 2: release 'abc' has not been prepared"),
        ("yield ['batch_size', 3]", r"run 2: sweep\(\) yields \['batch_size', 3\]: it must yield"),
        ("yield {'seed': 1 / 0}", r"sweep\(\): ZeroDivisionError: division by zero"),
    ],
)
def test_an_invalid_run_is_refused_before_any_begins(file, sweep, workdir, body, says):
    file(f"yield {{'batch_size': 4}}\n    {body}")
    status, out = sweep()
    assert status == 2 and re.search(r"some_sweep\.py.*" + says, out), out
    assert out.count("\n") == 1 and not [path for path in workdir.iterdir() if path.name != results.LOCK_FILE]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(): pass", "returned NoneType"),
        ("from idrid_jax.config import default_config as get_config", r"has no sweep\(\)"),
        ("from idrid_jax.config import default_config as get_config\nsweep = 3", r"has no sweep\(\)"),
        ("from idrid_jax.config import default_config as get_config\ndef sweep(): return []", "yields no run"),
        ("from idrid_jax.config import default_config as get_config\ndef sweep(): return 3", "TypeError"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_refused(file, sweep, tmp_path, text, says):
    (tmp_path / "some_sweep.py").write_text(text)
    status, out = sweep()
    assert status == 2 and out.count("\n") == 1 and re.search("some_sweep.*" + says, out), out


def test_wrong_flags_are_one_line(sweep):
    for arguments, says in (
        (["--only=3"], "--only 3: no such run"),
        (["--only=g_learning_rate=0.0003"], f"did you mean {FAST}"),
        (["--sbatch=-p gpu"], "--sbatch goes with --slurm"),
        (["--slurm", "--only=1"], "exclude each other"),
        (["--slurm", "--sbatch=gpu"], "belongs to no option"),
        (["--slurm", "--sbatch=--array=1-3"], "the sweep sets this option"),
        (["--jobs=0"], "jobs"),
        (["--config.batch_size=0"], "run 1: config.batch_size = 0"),
        (["--config.optimizer.g_learning_rate=1"], "--config.optimizer.g_learning_rate=1.0: every run of "),
    ):
        status, out = sweep(*arguments)
        assert status == 2 and out.count("\n") == 1 and says in out, out


def test_dry_run_lists_the_runs_and_writes_nothing(file, sweep, workdir):
    file(
        TWO
        + "\n    yield {'optimizer.g_learning_rate': 1e-4}\n    yield {'seed': 0, 'optimizer.g_learning_rate': 2e-4}"
    )
    status, out = sweep("--dry_run")
    assert status == 0 and not list(workdir.iterdir())
    assert re.findall(r"^ +(\d) +(.*)", out, re.M) == [("1", SLOW), ("2", FAST)]
    assert re.findall(r"run (\d) .* as run (\d)", out) == [("3", "1"), ("4", "2")]


# Runs


def test_runs_are_trained_and_evaluated_once(file, sweep, workdir):
    file(TWO + "\n    yield {'batch_size': 4}")
    status, out = sweep("--config.log_kimg=0.008")
    assert status == 0 and out.count("finished after") == 3
    began = starts(workdir)
    assert [line["run"] for line in began] == [SLOW, FAST, "batch_size=4"]  # in order, one after another
    saved = starts(workdir, "saved")
    assert all(end["time"] <= next["time"] for end, next in zip(saved, began[1:]))
    assert began[0]["fields"]["config.optimizer.g_learning_rate"] == "0.0001"
    assert {line["fields"]["config.log_kimg"] for line in began} == {"0.008"}  # from the command line
    (release,) = {line["fields"]["config.data.release"] for line in began}
    assert len(release) == 64
    table = csv(workdir)
    assert list(table.status) == ["finished"] * 3 and list(table.number) == [1, 2, 3]
    assert list(table["optimizer.g_learning_rate"]) == [1e-4, 2e-4, 2e-4] and list(table.batch_size) == [8, 8, 4]
    assert list(table.kimg) == [0.08, 0.08, 0.08]
    assert list(table.ssim) == [0.51, 0.51, 0.52] and list(table.loss_d) == [1e-4, 2e-4, 0]
    assert list(table.images_per_s) == [105.5, 105.5, 110.5] and list(table.ssim_excess) == [0.05] * 3
    assert (workdir / results.PICTURE).exists()
    for shown in ("0.510", "20.00", "held-out"):
        assert shown in out
    status, out = sweep()
    assert status == 0 and "3 of 3 runs are finished" in out and len(starts(workdir)) == 3


def test_an_extended_sweep_resumes_its_runs(sweep, workdir):
    assert sweep()[0] == 0 and list(csv(workdir).kimg) == [0.08] * 2
    assert sweep("--config.total_kimg=0.16")[0] == 0
    assert [line["step"] for line in starts(workdir)] == [0, 0, 10, 10]
    assert list(csv(workdir).kimg) == [0.16] * 2 and list(csv(workdir).ssim) == [0.52] * 2
    assert sweep("--config.total_kimg=0.04")[0] == 0 and len(starts(workdir)) == 4  # they are beyond that


def test_a_changed_file_starts_new_runs_and_deletes_nothing(file, sweep, workdir):
    assert sweep()[0] == 0
    file("for rate in (2e-4, 4e-4): yield {'optimizer.g_learning_rate': rate}")
    status, out = sweep()
    assert status == 0 and f"no longer has these runs: {SLOW}\n" in out
    assert [line["run"] for line in starts(workdir)] == [SLOW, FAST, "g_learning_rate=0.0004"]
    assert (workdir / SLOW / "evaluation.json").exists() and SLOW not in csv(workdir).index


def test_concurrent_runs_share_the_processors(file, sweep, workdir):
    (workdir / "pace").write_text("0.05")
    file("for seed in range(5): yield {'seed': seed}")
    assert sweep("--jobs=2")[0] == 0
    began, saved = starts(workdir), starts(workdir, "saved")
    busy = [sum(b["time"] <= at["time"] for b in began) - sum(s["time"] < at["time"] for s in saved) for at in began]
    assert max(busy) == 2 and len(began) == 5
    shares = {tuple(line["processors"]) for line in began}
    there = sorted(os.sched_getaffinity(0))
    if len(there) > 1:
        assert sorted(sum(shares, ())) == there and len(shares) == 2  # every processor once
    assert sorted(os.sched_getaffinity(0)) == there  # of this process


@pytest.mark.parametrize(
    ("visible", "slots", "expected"),
    [
        ("0,1,2,3", 2, [("0,1", None), ("2,3", None)]),
        ("GPU-a,GPU-b", 3, [("GPU-a", "0.450"), ("GPU-b", "0.450"), ("GPU-a", "0.450")]),
        ("5", 1, [(None, None)]),
        ("", 2, [(None, None)] * 2),
    ],
)
def test_concurrent_runs_share_the_gpus(monkeypatch, visible, slots, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    given = [job.resources(slot, slots)[0] for slot in range(slots)]
    names = "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert [tuple(map(environment.get, names)) for environment in given] == expected


def test_a_failed_run_has_a_reason_and_the_others_continue(file, sweep, workdir):
    file("for rate in (1e-4, 3.0, 2e-4): yield {'optimizer.g_learning_rate': rate}")
    status, out = sweep()
    assert status == 1 and "(g_learning_rate=3.0) failed: training: step 1: loss_g is nan" in out
    table = csv(workdir)
    assert list(table.status) == ["finished", "failed", "finished"]
    assert table.reason.loc["g_learning_rate=3.0"] == "training: step 1: loss_g is nan"
    assert sweep()[0] == 1 and [line["run"] for line in starts(workdir)].count("g_learning_rate=3.0") == 2


def test_a_killed_run_is_reported(sweep, workdir, monkeypatch):
    monkeypatch.setattr(job, "COMMAND", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    status, out = sweep("--only=1")
    assert status == 1 and f"({SLOW}) failed: training: ended by SIGKILL, out of memory?" in out


@pytest.mark.multiprocess
def test_a_run_interrupted_from_outside_is_not_finished(process, sweep, workdir):
    (workdir / "pace").write_text("0.5")
    running = process("--only=1")
    wait_until_started(workdir, SLOW)
    os.kill(starts(workdir)[0]["pid"], signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 1 and f"{SLOW}: interrupted" in out and csv(workdir).status.loc[SLOW] == "interrupted"
    (workdir / "pace").unlink()
    assert sweep()[0] == 0
    assert [line["step"] > 0 for line in starts(workdir) if line["run"] == SLOW] == [False, True]


# Interruption


def test_sigterm_reaches_the_runs_which_save_and_resume(sweep, workdir):
    (workdir / "pace").write_text("0.2")

    def terminate():
        wait_until_started(workdir, SLOW, FAST)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    status, out = sweep("--jobs=2")
    thread.join()
    assert status == 143 and "the same command resumes" in out
    saved = {line["run"]: line["step"] for line in starts(workdir, "saved")}
    assert saved.keys() == {SLOW, FAST} and all(2 <= step < 10 for step in saved.values())
    assert list(csv(workdir).status) == ["interrupted"] * 2
    (workdir / "pace").unlink()
    assert sweep()[0] == 0
    assert {line["run"]: line["step"] for line in starts(workdir)[2:]} == saved


@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_runs_which_save(process, sweep, workdir, number, status):
    (workdir / "pace").write_text("0.5")
    running = process("--jobs=2")
    wait_until_started(workdir, SLOW, FAST)
    os.killpg(running.pid, number)  # as a terminal does
    out, _ = running.communicate(timeout=60)
    assert running.returncode == status and "the same command resumes" in out and "Traceback" not in out
    saved = {line["run"]: line["step"] for line in starts(workdir, "saved")}
    assert saved.keys() == {SLOW, FAST} and all(2 <= step < 10 for step in saved.values())
    assert list(csv(workdir).status) == ["interrupted"] * 2 and (workdir / results.PICTURE).exists()
    (workdir / "pace").unlink()
    assert sweep()[0] == 0
    assert {line["run"]: line["step"] for line in starts(workdir)[2:]} == saved  # went on from there


@pytest.mark.multiprocess
def test_kill_9_of_the_sweep_lets_its_runs_save_and_the_same_command_resumes(process, sweep, workdir):
    (workdir / "pace").write_text("0.5")
    (workdir / "linger").write_text("4")
    running = process()
    wait_until_started(workdir, SLOW)
    child = starts(workdir)[0]["pid"]
    running.kill()
    running.wait()
    (workdir / "pace").unlink()
    status, out = sweep()  # the run of the first sweep is still saving
    assert status == 0 and "waiting for a run of a killed sweep" in out and len(starts(workdir, "saved")) == 3
    first, again, _ = starts(workdir)
    (saved, *_) = starts(workdir, "saved")
    assert (
        first["pid"] == child == saved["pid"]
        and again["time"] >= saved["time"]
        and 10 > again["step"] == saved["step"] > 0
    )


@pytest.mark.multiprocess
def test_the_runs_of_a_killed_sweep_are_interrupted(process, file, workdir):
    (workdir / "pace").write_text("0.5")
    running = process()
    wait_until_started(workdir, SLOW)
    path = file()
    made = definition.read_sweep(path, cli.parsing.load_config(str(path)))
    assert list(results.results_table(made, workdir).status) == ["running", "waiting"]
    running.kill()
    running.wait()
    wait_until(lambda: not results.is_locked(workdir / SLOW))
    assert list(results.results_table(made, workdir).status) == ["interrupted", "waiting"]


def test_the_lowest_kid_of_the_snapshots_is_shown(file, workdir):
    """Times 1000 in the text, if some run has it."""
    path = file()
    made = definition.read_sweep(path, cli.parsing.load_config(str(path)))
    line = {"kimg": 1.0, "loss_d": 1.0, "loss_g": 1.0, "images_per_s": 1.0}
    lines = [
        line | {"step": 1, "kid_imagenet": 0.02},
        line | {"step": 2},
        line | {"step": 3, "kid_imagenet": 0.03},
    ]
    (workdir / SLOW).mkdir(parents=True)
    (workdir / SLOW / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    frame = results.results_table(made, workdir)
    assert frame.kid_imagenet[0] == 0.02 and frame.kid_imagenet[1:].isna().all()
    header, first, second, *_ = results.format_results(frame, made.fields()).splitlines()
    assert [line.split()[-1] for line in (header, first, second)] == ["kid_imagenet", "20.0", "-"]
    (workdir / SLOW / "stats.jsonl").write_text(json.dumps(line | {"step": 1}) + "\n")
    assert "kid" not in results.format_results(results.results_table(made, workdir), made.fields())


@pytest.mark.multiprocess
def test_a_second_sweep_is_refused_but_single_runs_can_be_concurrent(process, sweep, workdir):
    (workdir / "pace").write_text("0.5")
    running = process("--only=1")
    wait_until_started(workdir, SLOW)
    status, out = sweep()
    assert status == 2 and f"another sweep works there (process {running.pid} on " in out and out.count("\n") == 1
    status, out = sweep("--only", SLOW)
    assert status == 1 and "another process works there" in out
    (workdir / "pace").unlink()
    assert sweep("--only=2")[0] == 0
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0 and list(csv(workdir).status) == ["finished"] * 2
    assert [line["run"] for line in starts(workdir)] == [SLOW, FAST]


def test_a_folder_of_another_configuration_or_release_is_refused(file, sweep, workdir, data, tmp_path):
    manifest = find_prepared(data)
    made_run.make_run(
        workdir / SLOW,
        manifest,
        network="dcgan28",
        batch_size=8,
        **{"data.crop": "letterbox", "optimizer.g_learning_rate": 1e-4},
    )
    assert sweep("--dry_run")[0] == 0
    file(common="config.optimizer.b2 = 0.9")
    status, out = sweep()
    assert status == 2 and "run 1: " in out and "config.optimizer.b2: 0.999 -> 0.9" in out and out.count("\n") == 1
    prepare(made_run.write_release(tmp_path / "other", train=(1, 1, 1, 1, 1)), tmp_path / "data", tfds=False)
    file(common=f"config.data.data_dir = {str(tmp_path / 'data')!r}")
    status, out = sweep()
    assert status == 2 and f"was trained on release made up ({manifest.fingerprint[:12]})" in out
    assert not starts(workdir)


# Slurm arrays


@pytest.mark.multiprocess
def test_the_array_runs_the_unfinished_runs(file, sweep, workdir, monkeypatch, tmp_path):
    """The stand-in for sbatch runs the tasks of the script one after another."""
    assert sweep("--only=1")[0] == 0
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f"""#!/usr/bin/env bash
cp "$1" {tmp_path}/submitted
for task in $(sed -n 's/^#SBATCH --array=\\([0-9,]*\\).*/\\1/p' "$1" | tr , ' '); do
  SLURM_ARRAY_TASK_ID=$task bash "$1" > {tmp_path}/task-$task 2>&1 || exit 1
done
echo Submitted batch job 7
""")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    path = file()
    path.write_text(f"{path.read_text()}\n{USE_STAND_IN}\n")
    status, out = sweep(
        "--slurm", "--jobs=3", "--config.seed=0", "--sbatch=--partition=gpu --time 1:00:00 --comment='a b'"
    )
    assert status == 0 and "Submitted batch job 7" in out, out
    script = (tmp_path / "submitted").read_text()
    for line in ("--array=2%3", "--partition=gpu", "--time 1:00:00", "'--comment=a b'", "--signal=B:TERM@120"):
        assert f"\n#SBATCH {line}\n" in script
    assert [line["run"] for line in starts(workdir)] == [SLOW, FAST] and list(csv(workdir).status) == ["finished"] * 2
    assert sweep("--slurm") == (0, "all 2 runs are finished\n")


def test_the_script_is_valid_and_remains_where_there_is_no_sbatch(sweep, workdir, monkeypatch, tmp_path):
    status, script = sweep("--slurm", "--dry_run")
    assert status == 0 and not list(workdir.iterdir())
    path = tmp_path / "script"
    path.write_text(script)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)
    if shutil.which("sbatch"):  # it checks the options before it contacts a cluster
        done = subprocess.run(["sbatch", "--test-only", path], capture_output=True, text=True)
        assert "unrecognized option" not in done.stderr and "nvalid" not in done.stderr, done.stderr
    monkeypatch.setattr(shutil, "which", lambda name: None)
    status, out = sweep("--slurm")
    assert status == 2 and "this machine has no sbatch" in out and (workdir / "sweep.sbatch").read_text() == script


# The real commands


@pytest.mark.slow  # trains and evaluates dcgan28 in three processes
@pytest.mark.multiprocess
def test_a_killed_sweep_of_real_commands_resumes_and_finishes(file, workdir):
    """dcgan28, six steps of two images: kill -9 of the sweep and of its run, then the same command."""
    path = file(
        "yield {'optimizer.g_learning_rate': 1e-4}",
        "config.batch_size, config.total_kimg = 2, 0.012\n    config.snapshot_kimg = config.log_kimg = 0.002\n"
        "    config.checkpoint.best, config.data.validation_folds = '', 0",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # optimized, for evaluation
    command = [sys.executable, "-m", "idrid_jax", "sweep", "--config", path, f"--workdir={workdir}"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    folder = workdir / SLOW
    wait_until((folder / "checkpoints" / "2").exists, seconds=240)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True).stdout
    running.send_signal(signal.SIGSTOP)  # it must not see its run end
    os.kill(int(children), signal.SIGKILL)
    running.kill()
    running.wait()
    assert not (folder / "evaluation.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in (folder / job.LOG).read_text()
    (row,) = csv(workdir).itertuples()
    measured = json.loads((folder / "evaluation.json").read_text())
    assert measured["run"]["last_step"] == 6 and row.kimg == 0.012 and row.status == "finished"
    assert row.ssim == pytest.approx(measured["quality"]["generated"]["ssim"])
    assert row.ssim_nearest == pytest.approx(measured["quality"]["nearest_to_generated"]["ssim"])
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and row.loss_g == pytest.approx(lines[-1]["loss_g"])
    assert json.loads((folder / "config.json").read_text())["config"]["optimizer"]["g_learning_rate"] == 1e-4
