"""Going back after numbers are no longer finite: to which state, with which updates, and what is told of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALL_ON, assert_same, changed, score, stats, steps

from idrid_jax.training import saved, sharding, update
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.divergence import TrainingDiverged, restarted
from idrid_jax.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def broken(monkeypatch):
    """(update, restarts): from that update on, counted from 0, a run that went back fewer times is NaN."""
    call = update.Update.__call__

    def breaks(at, below=1):
        def broken(self, state, images, grades, key):
            after, metrics = call(self, state, images, grades, key)
            harm = jnp.where((state.step >= at) & (state.restarts < below), jnp.nan, 1.0)
            params = jax.tree.map(lambda x: x * harm, after.d.params)
            after = dataclasses.replace(after, d=dataclasses.replace(after.d, params=params))
            return after, metrics | {"loss_d": metrics["loss_d"] * harm}

        monkeypatch.setattr(update.Update, "__call__", broken)

    return breaks


def restoring(config, **changes):
    return changed(config, on_divergence="restore", **changes)


def from_step_4(config, workdir, restarts):
    """A run that was told to take smaller updates from its first checkpoint on."""
    state = train(changed(config, total_kimg=0.032), workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(4, restarted(state, restarts, sharding.make_mesh(1)))
    return train(config, workdir)


@pytest.mark.parametrize(
    "way, options",
    [("resident", ALL_ON), ("tfdata", {}), ("tfdata", {"dispatch_steps": 2})],
    ids=["all on", "tfdata", "two a call"],
)
def test_training_goes_back_to_the_newest_checkpoint(config, tmp_path, capsys, broken, way, options):
    """Bit for bit what a run is whose updates are half as large from there on; the record has each step once."""
    config = restoring(config, data__pipeline=way, log_kimg=0.008, **options)
    want = from_step_4(changed(config, checkpoint__best=""), tmp_path / "want", 1)
    broken(at=6)
    state = train(config, tmp_path / "run", on_snapshot=(score,))
    said = capsys.readouterr().err
    line = "step 7: loss_d of the discriminator is nan: back to step 4, updates half as large from there on (1 of at "
    assert said.count("back to step") == 1 and line in said
    assert int(state.restarts) == 1 and steps(tmp_path / "run") == [4, 8, 12]
    assert_same((state.g, state.d, state.ema), (want.g, want.d, want.ema))
    rows = stats(tmp_path / "run")
    each = options.get("dispatch_steps", 1)
    assert [row["step"] for row in rows] == list(range(each, 13, each))
    assert [row.get("restarts") for row in rows] == [1 if row["step"] > 4 else None for row in rows]


def test_before_the_first_checkpoint_it_begins_again(config, tmp_path, capsys, broken):
    """From the same start, which is a function of the seed, or of the run that `init_from` names."""
    train(config, tmp_path / "source")
    for name, init_from in (("fresh", ""), ("tuned", str(tmp_path / "source"))):
        still = restoring(config, init_from=init_from, optimizer__g_learning_rate=0.0, ema_kimg=1.0)
        plain = train(changed(still, total_kimg=0.008), tmp_path / f"{name} alone")
        broken(at=2)
        state = train(still, tmp_path / name)
        assert "step 3: loss_d of the discriminator is nan: back to step 0, " in capsys.readouterr().err
        assert int(state.step) == 12 and int(state.restarts) == 1
        assert_same(state.g.params, plain.g.params)  # with a rate of 0, those at the start
        assert [row["restarts"] for row in stats(tmp_path / name)] == [1] * 6


def test_it_goes_back_three_times_at_most(config, tmp_path, capsys):
    """A learning rate that overflows whatever is taken off it; the same command ends the same way."""
    train(changed(config, total_kimg=0.032), tmp_path)
    exploding = restoring(config, optimizer__d_learning_rate=1e30)
    record = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(record.replace('"d_learning_rate": 0.0002', '"d_learning_rate": 1e+30'))
    for _ in range(2):
        with pytest.raises(
            TrainingDiverged,
            match=r"^step \d+: .* is (nan|inf); training went back 3 times, to updates 1/8 as large; the last good "
            r"checkpoint stays in .*: lower config.optimizer.._learning_rate .* or set config.optimizer.clip_norm in "
            r"another --workdir, with --config.init_from=.* to keep the networks$",
        ) as error:
            train(exploding, tmp_path)
        assert "\n" not in str(error.value)
        said = capsys.readouterr().err
        assert [f"({i} of at most 3 times)" in said for i in (1, 2, 3, 4)] == [True, True, True, False]
        assert steps(tmp_path) == [4] and [row["step"] for row in stats(tmp_path)][:2] == [2, 4]


def test_a_state_that_is_not_finite_is_gone_back_from(config, tmp_path, capsys, monkeypatch):
    """Finite losses and gradients, and broken parameters behind them, met at a snapshot that is logged already."""
    call = update.Update.__call__

    def broken(self, state, images, grades, key):
        after, metrics = call(self, state, images, grades, key)
        harm = jnp.where((state.step == 7) & (state.restarts == 0), jnp.inf, 0.0)
        params = jax.tree.map(lambda x: x + harm, after.g.params)
        return dataclasses.replace(after, g=dataclasses.replace(after.g, params=params)), metrics

    monkeypatch.setattr(update.Update, "__call__", broken)
    assert int(train(restoring(config), tmp_path).step) == 12
    assert "step 8: a parameter or statistic of the generator is not finite: back to step 4" in capsys.readouterr().err
    assert [row["step"] for row in stats(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [row.get("restarts") for row in stats(tmp_path)] == [None, None, 1, 1, 1, 1]


@pytest.mark.parametrize("snapshot", [2, 3])
def test_resumed_is_uninterrupted(config, tmp_path, broken, snapshot):
    """Killed at the snapshot after it went back, before that is saved, and at the one after: the count is in the
    checkpoint, or the same divergence comes again."""
    broken(at=6)
    whole = train(restoring(config), tmp_path / "whole")

    seen = []

    def kill(fakes, *_):
        seen.append(1)
        if len(seen) == snapshot:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(restoring(config), tmp_path / "killed", on_snapshot=(kill,))
    again = train(restoring(config), tmp_path / "killed")
    assert int(again.restarts) == 1
    assert_same(again, whole)
    rows = lambda run: [{k: v for k, v in row.items() if k not in TIMES} for row in stats(tmp_path / run)]
    assert rows("killed") == rows("whole")


TIMES = ("seconds", "images_per_s")


def test_what_a_run_does_may_change_when_it_goes_on(config, tmp_path, broken):
    """Stopped where it diverged; then told to go back; and then to stop again, which keeps the updates small."""
    broken(at=6)
    with pytest.raises(TrainingDiverged, match="set config.on_divergence to restore, or lower"):
        train(config, tmp_path)
    assert int(train(restoring(config, total_kimg=0.064), tmp_path).restarts) == 1
    assert int(train(config, tmp_path).restarts) == 1
    broken(at=0, below=2)
    with pytest.raises(TrainingDiverged, match="^step 13: .*; training went back 1 time, to updates 1/2 as large; "):
        train(changed(config, total_kimg=0.128), tmp_path)


def test_checkpoints_from_before_the_count_are_read(config, tmp_path, monkeypatch):
    """They hold none: resumed, and sampled, with 0."""
    whole = train(config, tmp_path / "whole")
    save = Checkpoints.save
    with monkeypatch.context() as patch:
        without = lambda self, step, state, **kw: save(self, step, dataclasses.replace(state, restarts={}), **kw)
        patch.setattr(Checkpoints, "save", without)
        train(changed(config, total_kimg=0.064), tmp_path / "older")
    _, state = saved.read_run(tmp_path / "older")
    assert int(state.step) == 8 and state.restarts.dtype == np.int32 and int(state.restarts) == 0
    assert_same(train(config, tmp_path / "older"), whole)
