"""Whole runs with tiny networks: the run directory, divergence, refusals, fine-tuning."""

import contextlib
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    ALL_ON,
    CHANNELS,
    LATENT,
    SIZE,
    TRAIN,
    assert_same,
    changed,
    make_config,
    plot_curves,
    score,
    stats,
    steps,
    train,
)
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax.data import cache, phantom
from idrid_jax.data.manifest import find_prepared
from idrid_jax.data.prepare import prepare
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.tensorboard import EventFile
from idrid_jax.training import logging, loop, monitoring, sharding
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.loop import MAX_PENDING
from idrid_jax.training.monitoring import TrainingDiverged, sample_images
from idrid_jax.training.optimizers import ema_decay
from idrid_jax.training.state import fresh_state

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# -- The run directory


def test_what_a_run_leaves(config, phantom_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging, "plot_curves", plot_curves)
    state = train(config, tmp_path / "a" / "run", metrics=score)
    workdir = tmp_path / "a" / "run"
    assert int(state.step) == 12
    record = json.loads((workdir / "config.json").read_text())
    manifest = find_prepared(phantom_data)
    assert record["config"] == config.to_dict()
    assert record["data"]["fingerprint"] == manifest.fingerprint
    assert record["data"]["counts"] == {"training": list(TRAIN), "held_out": [2, 2, 2, 2, 2]}
    assert record["versions"].keys() >= {"idrid_jax", "python", "jax", "flax", "optax", "orbax-checkpoint"}
    assert (
        len(record["devices"]) == len(jax.devices())
        and record["devices"][0].startswith("cpu:0")
        and "revision" in record
    )

    rows = stats(workdir)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        assert row.keys() - {"score"} == {
            "step",
            "kimg",
            "seconds",
            "images_per_s",
            "loss_d",
            "loss_g",
            "d_real",
            "d_fake_before",
            "d_fake_after",
            "d_accuracy",
            "grad_norm_d",
            "grad_norm_g",
        }
        assert ("score" in row) == (row["step"] % 4 == 0) and row["kimg"] == row["step"] * 8 / 1000
        assert all(np.isfinite(value) for value in row.values()) and 0 < row["d_real"] < 1

    grids = sorted(path.name for path in workdir.glob("fakes_*.png"))
    assert grids == [f"fakes_000000.{images:03d}.png" for images in (0, 32, 64, 96)]
    for name in ("reals.png", *grids):
        assert Image.open(workdir / name).size == (12 * (SIZE + 2) - 2, 5 * (SIZE + 2) - 2)  # a row for each grade
    assert len({(workdir / name).read_bytes() for name in grids}) == 4
    assert Image.open(workdir / "curves.png").size == (1000, 1500)
    assert (workdir / "tensorboard").is_dir() and list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert steps(workdir) == [4, 8, 12]
    assert not [path for path in workdir.iterdir() if path.name.startswith(".")]
    said = capsys.readouterr().err
    assert "0.1/0.1 kimg" in said and len(re.findall(r"^first step after \d+\.\d s$", said, re.MULTILINE)) == 1


@pytest.mark.parametrize("added, panels", [((), 5), (("r1", "lecam"), 6)])
def test_curves_are_plotted(tmp_path, added, panels):
    """A panel for each group of measures, one more where something is added to the losses; whole or not at all."""
    rows = [{"kimg": i, "loss_d": 1.0 + i, "loss_g": 2.0 - i, **dict.fromkeys(added, float(i))} for i in range(3)]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps({"step": row["kimg"]} | row) + "\n" for row in rows))
    plot_curves(tmp_path)
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert picture.size == (1000, 300 * panels)
    assert {(31, 119, 180), (255, 127, 14)} <= {colour for _, colour in picture.getcolors(2**20)}  # two lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "stats.jsonl"]


def test_reals_of_a_conditional_network_are_by_grade(config, phantom_data, tmp_path):
    train(changed(config, total_kimg=0.008), tmp_path)
    picture = np.asarray(Image.open(tmp_path / "reals.png"))
    split = cache.load(find_prepared(phantom_data), "train", size=SIZE, channels=3, crop=config.data.crop)
    for grade in range(5):
        for column, index in enumerate(np.flatnonzero(split.grades == grade)):
            y, x = grade * (SIZE + 2), column * (SIZE + 2)
            assert (picture[y : y + SIZE, x : x + SIZE] == split.images[index]).all()


def test_the_thesis_s_console_line(config, tmp_path, capsys):
    train(changed(config, log__console="thesis", log_kimg=0.008), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    pattern = rf"\[\d/3\]\[\d/4\] Loss_D: {number} Loss_G: {number} D\(x\): {number} D\(G\(z\)\): {number} / {number}"
    assert len(lines) == 12 and all(re.fullmatch(pattern, line) for line in lines), lines
    assert [line.split(" ")[0] for line in lines] == [
        f"[{i // 4}/3][{i % 4}/4]" for i in range(12)
    ]  # 32 photographs, 4 batches an epoch


def test_names_of_grids_count_thousands(config, tmp_path):
    train(changed(config, batch_size=500, total_kimg=2.0, snapshot_kimg=1.0), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("fakes_*.png")) == [f"fakes_{kimg:06d}.png" for kimg in range(3)]


@pytest.mark.parametrize(
    "batch, every, total", [(128, 10, 150), (500, 1, 2.5), (500, 1.5, 9), (16, 0.1, 2.05), (100, 3, 3.2), (64, 10, 0.3)]
)
def test_no_two_grids_of_a_run_have_one_name(config, batch, every, total):
    """The last snapshot may come soon after the one before."""
    config = changed(config, batch_size=batch, snapshot_kimg=float(every), total_kimg=float(total))
    between, last = (config_lib.steps(kimg, config) for kimg in (every, total))
    taken = sorted({*range(0, last, between), last})
    names = [f"{monitoring.fakes_name(config, step)}.png" for step in [*taken, last + 1]]  # as if it had gone on
    assert len(set(names)) == len(names) > 2 and names == sorted(names)


# -- Divergence


def test_an_exploding_run_stops_and_keeps_the_last_good_checkpoint(config, tmp_path):
    """A learning rate that overflows from step 7 on is what a later, broken step looks like."""
    train(changed(config, total_kimg=0.032), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["optimizer"]["d_learning_rate"] = 1e30
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(TrainingDiverged, match="discriminator") as error:
        train(changed(config, optimizer__d_learning_rate=1e30), tmp_path)
    assert "\n" not in str(error.value)
    assert steps(tmp_path) == [4]


@pytest.mark.parametrize("network, name", [("discriminator", "loss_d"), ("generator", "grad_norm_g")])
def test_divergence_names_the_step_the_network_and_its_learning_rate(config, tmp_path, monkeypatch, network, name):
    make_step = loop.make_train_step

    def make_broken_step(*arguments):
        step, calls = make_step(*arguments), itertools.count(1)

        def call(state):
            state, numbers = step(state)
            return state, numbers | ({name: numbers[name] * jnp.nan} if next(calls) == 7 else {})

        call.updates = step.updates
        return call

    monkeypatch.setattr(loop, "make_train_step", make_broken_step)
    with pytest.raises(TrainingDiverged) as error:
        train(config, tmp_path)
    for part in (f"step 7: {name} of the {network}", f"config.optimizer.{network[0]}_learning_rate", "--workdir"):
        assert part in str(error.value)
    assert steps(tmp_path) == [4]
    assert [row["step"] for row in stats(tmp_path)] == [2, 4, 6]


def test_a_state_that_is_not_finite_is_not_saved(config, tmp_path):
    """The very update that leaves infinite parameters has finite losses and gradients."""
    every = changed(config, snapshot_kimg=0.008, optimizer__g_learning_rate=1e39)
    with pytest.raises(TrainingDiverged, match="^step 1: .* of the generator is not finite.*g_learning_rate"):
        train(every, tmp_path)
    assert steps(tmp_path) == []


def test_a_discriminator_that_breaks_in_its_update_is_named_too(config, tmp_path):
    """The generator's loss is the first to show it."""
    with pytest.raises(TrainingDiverged, match="^step 1: loss_g of the generator.*d_learning_rate.*g_learning_rate"):
        train(changed(config, optimizer__d_learning_rate=1e30, log_kimg=0.008), tmp_path)
    mended = train(config, tmp_path)  # in the same folder: nothing there is of use
    assert int(mended.step) == 12 and [row["step"] for row in stats(tmp_path)][-1] == 12


# -- Refusals


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"batch_size": 16}, ["config.batch_size: 8 -> 16"]),
        ({"network": "tiny_unconditional"}, ["config.network: 'tiny' -> 'tiny_unconditional'"]),
        ({"ema_kimg": 1.0, "optimizer__b1": 0.9}, ["config.ema_kimg: 0.0 -> 1.0", "config.optimizer.b1: 0.5 -> 0.9"]),
        ({"seed": 1, "data__flip": True}, ["config.data.flip", "config.seed"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config, tmp_path, changes, named):
    train(changed(config, total_kimg=0.008), tmp_path)
    with pytest.raises(UserError, match="differs in") as error:
        train(changed(config, **changes), tmp_path)
    assert all(field in str(error.value) for field in named) and "\n" not in str(error.value)
    assert str(error.value).count("->") == len(changes)


def test_a_finished_run_without_its_checkpoints_is_no_failed_start(config, tmp_path):
    """They may have been deleted for their size: what it shows is not to be taken for another run's."""
    train(changed(config, total_kimg=0.008), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="differs in config.seed"):
        train(changed(config, seed=1), tmp_path)


def test_other_data_are_refused(config, tmp_path):
    train(changed(config, total_kimg=0.008), tmp_path / "run")
    release = phantom.make_release(
        tmp_path / "other", seed=2, train=(2, 2, 2, 2, 2), test=(1, 1, 1, 1, 1), segmentation=(0, 0), height=64
    )
    other, _ = prepare(release, tmp_path / "data", tfds=False)
    ours = find_prepared(config.data.data_dir)
    with pytest.raises(UserError, match="was trained on release") as error:
        train(changed(config, data__data_dir=str(tmp_path / "data")), tmp_path / "run")
    assert other.fingerprint[:12] in str(error.value) and ours.fingerprint[:12] in str(error.value)


def test_a_grade_that_is_missing_stops_balanced_training_alone(tiny, tmp_path):
    release = phantom.make_release(
        tmp_path / "release", train=(4, 0, 4, 4, 4), test=(1, 1, 1, 1, 1), segmentation=(0, 0), height=64
    )
    prepare(release, tmp_path / "data", tfds=False)
    config = make_config(tmp_path / "data", total_kimg=0.008)
    with pytest.raises(UserError, match="no photograph of grade MILD"):
        train(changed(config, data__sampling="balanced"), tmp_path)
    assert int(train(config, tmp_path).step) == 1  # nothing was saved that it could not go on with


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"checkpoint__best": "scor"}, "config.checkpoint.best = 'scor': .*score"),
        ({"total_kimg": 0.0}, "config.total_kimg = 0.0"),
        ({"network": "tinny"}, "config.network = 'tinny': .*tiny"),
        ({"data__pipeline": "residant"}, "config.data.pipeline = 'residant': .*resident"),
        ({"data__data_dir": "/nowhere"}, "prepare"),
        ({"init_from": "/nowhere"}, "config.init_from: /nowhere: no run is there"),
    ],
)
def test_mistakes_are_refused(config, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        train(changed(config, **changes), tmp_path / "run", metrics=score)
    assert "\n" not in str(error.value)


def test_a_workdir_that_is_a_file_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="--workdir .*run: cannot be written"):
        train(config, tmp_path / "run")


# -- Fine-tuning


def test_init_from_takes_the_networks_alone(config, tmp_path, capsys):
    source = train(config, tmp_path / "source")
    tuned = changed(
        config,
        init_from=str(tmp_path / "source"),
        optimizer__g_learning_rate=0.0,
        optimizer__d_learning_rate=0.0,
        total_kimg=0.008,
    )
    state = train(tuned, tmp_path / "tuned")
    assert f"from {tmp_path / 'source'} (tiny): all 18 arrays" in capsys.readouterr().err
    assert_same(state.g.params, source.g.params)
    assert_same(state.d.params, source.d.params)
    assert int(state.step) == 1 and all(int(leaf) == 1 for leaf in jax.tree.leaves(state.g.opt) if leaf.shape == ())
    assert not np.array_equal(state.g.stats["norm"]["mean"], np.zeros(8))
    # the same command resumes, whatever has become of the source
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    again = train(changed(tuned, total_kimg=0.016), tmp_path / "tuned")
    assert int(again.step) == 2
    with pytest.raises(UserError, match="config.init_from"):  # the average's youth depends on it
        train(changed(tuned, total_kimg=0.016, init_from=""), tmp_path / "tuned")


def test_init_from_takes_or_begins_the_average(config, tmp_path):
    averaged = train(changed(config, ema_kimg=0.05), tmp_path / "averaged")
    still = dict(total_kimg=0.008, optimizer__g_learning_rate=0.0, optimizer__d_learning_rate=0.0)
    state = train(changed(config, ema_kimg=1.0, init_from=str(tmp_path / "averaged"), **still), tmp_path / "a")
    assert_same(state.g.params, averaged.g.params)
    for a, b, p in zip(*map(jax.tree.leaves, (state.ema, averaged.ema, averaged.g.params)), strict=True):
        f = ema_decay(8, 1.0)  # the average is not young
        np.testing.assert_allclose(a, f * np.asarray(b) + (1 - f) * np.asarray(p), atol=1e-6)
    assert train(changed(config, init_from=str(tmp_path / "averaged"), **still), tmp_path / "b").ema == {}


def test_init_from_under_fsdp(config, tmp_path, monkeypatch):
    """What comes whole from the other run is split as this one's state is."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
    train(config, tmp_path / "source")
    split = changed(config, init_from=str(tmp_path / "source"), ema_kimg=1.0, mesh__data=8, mesh__fsdp=True)
    state = train(split, tmp_path / "tuned")
    assert int(state.step) == 12
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.g.params, state.ema)))


def test_init_from_another_network_is_refused(config, tmp_path):
    train(changed(config, total_kimg=0.008, network="tiny_unconditional"), tmp_path / "source")
    with pytest.raises(UserError, match="init_from = .*tiny_unconditional.*0 of 18 arrays"):
        train(changed(config, init_from=str(tmp_path / "source")), tmp_path / "run")


# -- Speed


def test_images_are_sampled_in_batches(config):
    """The largest divisor up to the batch size is generated at a time; the images are the same."""
    state, generator = fresh_state(config, sharding.make_mesh(1)), build_networks(config)[0]
    z, grades = jax.random.normal(jax.random.key(1), (10, LATENT)), jnp.arange(10) % 5
    whole = sample_images(generator, state, z, grades, 64)
    for batch_size, part in ((4, 2), (1, 1)):
        program = jax.jit(sample_images, static_argnums=(0, 4)).trace(generator, state, z, grades, batch_size)
        assert f"u8[{part},{SIZE},{SIZE},{CHANNELS}]" in str(program.jaxpr)
        np.testing.assert_array_equal(sample_images(generator, state, z, grades, batch_size), whole)
    assert {name: made.sample_batch_size for name, made in NETWORKS.items() if "dcgan" in name} == {
        "dcgan28": 64, "dcgan64": 64, "dcgan128": 64, "dcgan256": 16, "dcgan512": 4, "dcgan1024": 1
    }  # fmt: skip


class Held:
    """A metric that records when it is waited for or read. A transfer guard cannot: a CPU's arrays are host memory."""

    def __init__(self, value, step, record):
        self._value, self._step, self._record = value, step, record

    def block_until_ready(self):
        self._record("wait", self._step)

    def __array__(self, *args, **kwargs):
        self._record("read", self._step)
        return np.asarray(self._value, *args, **kwargs)


@pytest.mark.parametrize("pipeline", ["resident", "tfdata"])
def test_the_loop_does_not_wait_for_the_step_that_it_has_just_dispatched(config, tmp_path, monkeypatch, pipeline):
    """Between snapshots metrics are read at log points alone, MAX_PENDING steps later; the state is not touched, and
    nothing moves to the device but the batches of tf.data, explicitly."""
    events, guard = [], contextlib.ExitStack()
    make_step = loop.make_train_step

    def make_recorded_step(*arguments):
        step, calls, real = make_step(*arguments), 0, None

        def call(state):
            nonlocal calls, real
            real, metrics = step(state if calls == 0 else real)
            calls += 1
            if calls == 1:
                guard.enter_context(jax.transfer_guard("disallow"))
            if calls == 24:
                guard.close()
            record = lambda kind, of: events.append((kind, of, calls))
            metrics = {name: Held(value, calls, record) for name, value in metrics.items()}
            return (real if calls == 24 else object()), metrics

        call.updates = step.updates
        return call

    monkeypatch.setattr(loop, "make_train_step", make_recorded_step)
    with guard:
        config = changed(
            config, data__pipeline=pipeline, total_kimg=0.192, snapshot_kimg=0.192, log_kimg=0.064, **ALL_ON
        )
        assert int(train(config, tmp_path, metrics=score).step) == 24
    waits = {(of, when) for kind, of, when in events if kind == "wait"}
    # log points at 8, 16 and 24; the first step is waited for as it compiles; a snapshot waits for all
    assert {when for kind, _, when in events if kind == "read"} == {8 + MAX_PENDING, 16 + MAX_PENDING, 24}
    assert (1, 1) in waits and all(when - of >= MAX_PENDING for of, when in waits - {(1, 1)})
    assert [row["step"] for row in stats(tmp_path)] == [8, 16, 24]


# -- What ties a run to its data


def test_checkpoints_without_their_record_are_refused(config, tmp_path):
    train(config, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="has checkpoints but no config.json"):
        train(changed(config, seed=9), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_checkpoint_of_other_data_is_refused(config, tmp_path):
    """The fingerprint is in each checkpoint: copying a record does not pass one release for another."""
    state = train(config, tmp_path)
    with Checkpoints(tmp_path, "f" * 64) as checkpoints:
        with pytest.raises(UserError, match="trained on release .*, not on ffffffffffff"):
            checkpoints.restore(state)
    assert steps(tmp_path)


def test_a_full_disk_for_tensorboard_is_an_error_of_our_own_thread(config, tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventFile, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path)
