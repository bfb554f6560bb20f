"""Runs that were interrupted, killed, extended or damaged resume bit for bit as if nothing had happened."""

import json
import os
import re
import signal

import jax
import launched
import numpy as np
import pytest
from conftest import ADAPTIVE, ALL_ON, DATA_ON, LOSSES_ON, assert_same, changed, make_config, score, stats, steps, train
from launched import command

from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.run_dir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def stop_at(number, sent=signal.SIGTERM):
    """Return snapshot metrics that interrupt the run the `number`th time they are computed."""
    calls = []

    def callback(fakes, *_):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), sent)
        return score(fakes)

    callback.names = score.names
    return callback


@pytest.mark.parametrize(
    "pipeline, options, signals",
    [
        ("resident", ALL_ON, [signal.SIGTERM, signal.SIGINT]),
        ("tfdata", DATA_ON, [signal.SIGTERM]),
        pytest.param("resident", LOSSES_ON | ADAPTIVE, [signal.SIGTERM], marks=pytest.mark.slow),  # long compilation
    ],
    ids=["all on", "data", "losses"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, capsys, pipeline, options, signals):
    """Bit for bit, all of the state; interrupted between two snapshots, once or twice."""
    config = changed(config, data__pipeline=pipeline, **options)
    whole = train(config, tmp_path / "whole", metrics=score)
    capsys.readouterr()
    stops = [5, 9][: len(signals)]  # the signal comes during the snapshot of the step before
    for last, stop, sent in zip([None, *stops], stops, signals):
        stopped = train(config, tmp_path / "parts", metrics=stop_at(1, sent))
        assert int(stopped.step) == steps(tmp_path / "parts")[-1] == stop
        err = capsys.readouterr().err
        assert f"interrupted: saved step {stop}" in err and (last is None or f"resuming from step {last}" in err)
    assert_same(train(config, tmp_path / "parts", metrics=score), whole)
    with Checkpoints(tmp_path / "parts") as a, Checkpoints(tmp_path / "whole") as b:
        assert_same(a.restore(whole), b.restore(whole))
    by_step = [row["step"] for row in stats(tmp_path / "parts")]
    assert by_step == sorted(set(by_step)) and {2, 4, 8, 12, *stops} <= set(by_step)
    for name in ("reals.png", "fakes_000000.096.png"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow  # test_sharding compares the pipelines, too
def test_both_pipelines_train_the_same(config, gradient_descent, tmp_path):
    """And a run may change its pipeline when it resumes."""
    resident = train(config, tmp_path / "resident")
    train(changed(config, total_kimg=0.048, data__pipeline="tfdata"), tmp_path / "mixed")
    mixed = train(changed(config, data__pipeline="resident"), tmp_path / "mixed")
    for a, b in zip(jax.tree.leaves(resident.g.params), jax.tree.leaves(mixed.g.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("pipeline", ["resident", pytest.param("tfdata", marks=pytest.mark.slow)])  # as long
def test_several_updates_per_call_are_the_same_run(config, gradient_descent, tmp_path, pipeline):
    """Interrupted between calls; logged and saved at whole calls."""
    config = changed(config, data__pipeline=pipeline)
    single = train(config, tmp_path / "single")
    several = changed(config, dispatch_steps=2)
    stopped = train(several, tmp_path / "several", metrics=stop_at(1))
    assert int(stopped.step) == 6 and steps(tmp_path / "several")[-1] == 6
    several = train(several, tmp_path / "several")
    assert int(several.step) == 12
    for a, b in zip(jax.tree.leaves(single.g.params), jax.tree.leaves(several.g.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    by_step = [[row["loss_d"] for row in stats(tmp_path / run)] for run in ("single", "several")]
    np.testing.assert_allclose(*by_step, rtol=1e-3)


def test_a_finished_run_is_left_alone(config, tmp_path):
    whole = train(config, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in RunDir(tmp_path).checkpoints.rglob("*")}
    calls = []
    assert_same(train(config, tmp_path, metrics=lambda *_: calls.append(1) or {}), whole)
    assert not calls and {path: path.stat().st_mtime_ns for path in RunDir(tmp_path).checkpoints.rglob("*")} == before
    assert [row["step"] for row in stats(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_run_extended_is_the_long_run(config, tmp_path):
    whole = train(changed(config, total_kimg=0.16), tmp_path / "whole")
    train(config, tmp_path / "parts")
    assert_same(train(changed(config, total_kimg=0.16), tmp_path / "parts"), whole)
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["config"]["total_kimg"] == 0.16


def test_a_damaged_newest_checkpoint_costs_one_snapshot(config, tmp_path, capsys):
    whole = train(config, tmp_path)
    next((RunDir(tmp_path).checkpoints / "12" / "state").rglob("manifest.ocdbt")).unlink()
    assert_same(train(config, tmp_path), whole)
    assert "checkpoint of step 12 is unreadable" in (err := capsys.readouterr().err) and "resuming from step 8" in err


def test_stats_of_a_killed_run_are_cut_back(config, tmp_path):
    """Lines written after the last checkpoint, and a line cut short, are not there twice after resume."""
    train(changed(config, total_kimg=0.064), tmp_path)
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 10, "loss_d": 1.0}\n{"step": 12, "los')
    train(config, tmp_path)
    assert [row["step"] for row in stats(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert all(row["images_per_s"] > 0 for row in stats(tmp_path))


def test_the_last_the_regular_and_the_best_checkpoints_are_kept(config, tmp_path):
    config = changed(
        config, total_kimg=0.256, checkpoint__keep_last=2, checkpoint__keep_every_kimg=0.064, checkpoint__best="score"
    )
    scores = iter([5, 4, 1, 3, 2, 9, 9, 9])
    metrics = lambda *_: {"score": next(scores)}
    metrics.names = score.names
    train(config, tmp_path, metrics=metrics)
    # snapshots at 4, 8, ... 32: every second one, 0.064 kimg apart; the best at 12
    assert steps(tmp_path) == [8, 12, 16, 24, 28, 32]


@pytest.mark.slow  # three processes that compile
def test_kill_9_of_the_command_then_resume(phantom_data, tmp_path):
    """The real command and a real network; killed between snapshots, started again: the same as never killed."""
    commands = {
        name: command(*launched.train(tmp_path / name, phantom_data, total_kimg=0.096, mesh__data=1))
        for name in ("killed", "whole")
    }
    with launched.started(*commands["killed"]) as process:
        launched.wait_for(lambda: (RunDir(tmp_path / "killed").checkpoints / "4").is_dir(), process)
        process.kill()
        process.wait()
    for name, words in commands.items():
        status, output = launched.run(*words)
        assert status == 0, output
        resumed = re.search(r"resuming from step (\d+)", output)
        assert resumed is None if name == "whole" else int(resumed[1]) in (4, 8), output
    killed, whole = (stats(tmp_path / name) for name in commands)
    assert [row["step"] for row in killed] == list(range(1, 13))
    assert [row["loss_d"] for row in killed] == [row["loss_d"] for row in whole]
    config = make_config(phantom_data, "dcgan28", data__crop="letterbox", log_kimg=0.008)
    assert_same(*(train(config, tmp_path / name) for name in commands))  # finished runs are restored and returned
