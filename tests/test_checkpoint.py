"""Checkpoints: bit for bit, kept as asked, whole or not at all, and damage reported."""

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same

from idrid_jax.errors import UserError
from idrid_jax.training.checkpoint import TEMPORARY, Checkpoints
from idrid_jax.training.run_dir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)  # Orbax's, on damage
FOLDER, SET_ASIDE = RunDir("").checkpoints.name, RunDir("").unreadable_checkpoints.name
N = 5000  # floats in the large array


def state(step):
    """A state with awkward values, of several types, that says which step it is."""
    rng = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "g": {
            "w": jnp.asarray(rng.standard_normal(N), jnp.float32),
            "odd": jnp.array([jnp.inf, -0.0, 1e-45, jnp.nan, 3.4e38], jnp.float32),
        },
        "empty": {},
        "tuple": (jnp.array(True), jnp.zeros(1)),
        "half": jnp.asarray(rng.standard_normal(3), jnp.bfloat16),
    }


def save(workdir, steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def restore(workdir, **options):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(state(0), **options)


def steps(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps()


def chunks(workdir, step):
    """The files that hold the arrays' values, largest first."""
    folder = workdir / FOLDER / str(step) / "state"
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def test_of_a_replicated_array_the_first_device_is_saved(tmp_path):
    """Replicas on processors with other numbers of cores differ by rounding; a mixture of them would be no state."""
    devices = np.array(jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, "x"), jax.sharding.PartitionSpec())
    shards = [jax.device_put(np.full(N, i, np.float32), device) for i, device in enumerate(devices)]
    replicated = {"w": jax.make_array_from_single_device_arrays((N,), sharding, shards)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, replicated)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(replicated)
    np.testing.assert_array_equal(restored["w"], np.zeros(N))


def test_round_trip_is_bit_for_bit(tmp_path):
    assert restore(tmp_path) is None and steps(tmp_path) == []
    save(tmp_path, [3, 7])
    assert steps(tmp_path) == [3, 7]
    assert_same(restore(tmp_path), state(7))
    assert_same(restore(tmp_path, step=3), state(3))


def test_the_last_the_regular_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.3, 3: 0.1, 4: 0.2, 5: None, 6: 0.4, 7: float("nan"), 8: None, 9: 0.6}
    options = dict(keep_last=2, keep_every_steps=5)
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, {"a": jnp.int32(step)}, score=score)
    assert steps(tmp_path) == [3, 5, 8, 9]
    with Checkpoints(tmp_path, **options) as checkpoints:  # a resumed run knows the earlier scores
        assert checkpoints.best_step() == 3
        for step, score in {10: 0.3, 11: 0.05, 12: 1.0, 13: 1.0}.items():
            checkpoints.save(step, {"a": jnp.int32(step)}, score=score)
        checkpoints.wait()
        assert checkpoints.best_step() == 11
    assert steps(tmp_path) == [5, 10, 11, 12, 13]


def test_arrays_may_be_donated_after_save(tmp_path):
    """What is saved is the state of then, whatever happens to its memory afterwards."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(300_000)
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        for i in range(4):
            checkpoints.save(i, {"x": x})
            for _ in range(20):
                x = step(x)
    with Checkpoints(tmp_path) as checkpoints:
        for i in range(4):
            assert (np.asarray(checkpoints.restore({"x": jnp.zeros(300_000)}, step=i)["x"]) == 20 * i).all()


def test_the_same_step_again_overwrites(tmp_path):
    save(tmp_path, [4])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state(99))
    assert steps(tmp_path) == [4]
    assert_same(restore(tmp_path), state(99))


# -- Damage


def flip(workdir):
    path = chunks(workdir, 2)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(workdir):
    path = chunks(workdir, 2)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(workdir):
    for path in chunks(workdir, 2):
        path.unlink()


def remove_metadata(workdir):
    (workdir / FOLDER / "2" / "state" / "_METADATA").unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove, remove_metadata])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(tmp_path, capfd, damage):
    save(tmp_path, [1, 2])
    capfd.readouterr()
    damage(tmp_path)
    assert_same(restore(tmp_path), state(1))
    lines = capfd.readouterr().err.strip().splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("checkpoint of step 2 is unreadable (")
        and str(tmp_path / SET_ASIDE / "2") in lines[0]
    )
    assert steps(tmp_path) == [1] and (tmp_path / SET_ASIDE / "2").is_dir()
    save(tmp_path, [2])  # the run gets there again
    assert_same(restore(tmp_path), state(2))


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        PermissionError(13, "denied"),
        MemoryError(),
        ValueError("cannot read [os_error_code='5']"),
        RuntimeError("RESOURCE_EXHAUSTED"),
    ],
)
def test_errors_that_are_no_damage_are_raised_and_move_nothing(tmp_path, monkeypatch, error):
    save(tmp_path, [1, 2])
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._checkpointer, "load", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            checkpoints.restore(state(0))
    assert steps(tmp_path) == [1, 2] and not (tmp_path / SET_ASIDE).exists()


def test_log_records_of_others_pass(tmp_path, caplog):
    """Only what Orbax logs is dropped."""
    save(tmp_path, [1])
    logging.getLogger("absl").error("ours")
    assert [record.getMessage() for record in caplog.records] == ["ours"]


def test_none_readable_is_refused(tmp_path):
    save(tmp_path, [1, 2])
    for step in (1, 2):
        for path in chunks(tmp_path, step):
            path.unlink()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        restore(tmp_path)


def test_a_damaged_checkpoint_asked_for_by_step_is_refused_and_left(tmp_path):
    save(tmp_path, [1, 2])
    flip(tmp_path)
    with pytest.raises(UserError, match=f"{FOLDER}/2: .*checksum"):
        restore(tmp_path, step=2)
    assert steps(tmp_path) == [1, 2]


def test_another_structure_is_not_read_as_ours(tmp_path):
    save(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="unreadable"):
        checkpoints.restore({"step": jnp.int32(0), "other": jnp.zeros(N)}, step=1)


# -- Whole or not at all

SAVING = textwrap.dedent("""
    import sys, jax.numpy as jnp
    from pathlib import Path
    from idrid_jax.training.checkpoint import Checkpoints
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        for step in range(1, 10_000):
            checkpoints.save(step, {f"a{i}": jnp.full(20_000, step, jnp.float32) for i in range(20)})
            print(step, flush=True)
""")


@pytest.mark.slow  # a process that imports JAX and saves
def test_kill_while_saving(tmp_path):
    """kill -9 at any moment: what reads as a checkpoint is whole, and the next save clears what was half-written."""
    like = {f"a{i}": jnp.zeros(20_000) for i in range(20)}
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    while (line := process.stdout.readline()).strip() != "3":
        assert line, "it died"
    deadline = time.monotonic() + 20
    while not list((tmp_path / FOLDER).glob(f"*{TEMPORARY}")) and time.monotonic() < deadline:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.steps()
        assert found and len(found) <= 5  # three, and what a kill kept from being removed
        restored = checkpoints.restore(like)
        assert all((np.asarray(a) == found[-1]).all() for a in restored.values())
        checkpoints.save(found[-1] + 1, restored)
    assert steps(tmp_path)[-1] == found[-1] + 1
    assert not (tmp_path / SET_ASIDE).exists()
    assert [path.name for path in (tmp_path / FOLDER).iterdir() if TEMPORARY in path.name] == []


def test_half_written_is_never_read(tmp_path):
    """A folder that is not whole, newer than the newest, and of a step that is saved next."""
    save(tmp_path, [1, 2])
    half = tmp_path / FOLDER / f"3{TEMPORARY}"
    os.rename(tmp_path / FOLDER / "2", half)
    assert steps(tmp_path) == [1]
    assert_same(restore(tmp_path), state(1))
    save(tmp_path, [3])
    assert not half.exists()
    assert_same(restore(tmp_path), state(3))


def test_a_reader_leaves_another_process_s_save_alone(tmp_path):
    """`sample` and `evaluate` open a run that may be training."""
    save(tmp_path, [1])
    half = tmp_path / FOLDER / f"2{TEMPORARY}"
    half.mkdir()
    restore(tmp_path)
    assert half.exists()


# -- What it writes


def test_nothing_is_pickled(tmp_path):
    save(tmp_path, [1])
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert path.suffix not in (".pkl", ".pickle")
        assert not (data.startswith(b"\x80") and data.endswith(b".")) and b"cnumpy" not in data, path


FULL = textwrap.dedent("""
    import resource, signal, sys, jax, jax.numpy as jnp
    from pathlib import Path
    from idrid_jax.errors import UserError
    from idrid_jax.training.checkpoint import Checkpoints
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # no file gets larger: to a program, a full disk
    try:
        with Checkpoints(Path(sys.argv[1])) as checkpoints:
            for step in range(2):
                checkpoints.save(step, {"a": jax.random.normal(jax.random.key(0), (100_000,))})
    except UserError as error:
        print(error)
""")


@pytest.mark.slow  # a process that imports JAX and saves
def test_a_full_disk_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0 and len(lines) == 1, done.stderr[-2000:]
    assert f"{tmp_path / FOLDER}: cannot save" in lines[0] and "make room" in lines[0]
    assert "Traceback" not in done.stderr and "cannot save" not in done.stderr
    assert steps(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:

        def refuse(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._checkpointer, "save_async", refuse)
        with pytest.raises(UserError, match="cannot save step 1: .*No space left on device; make room"):
            checkpoints.save(1, state(1))
