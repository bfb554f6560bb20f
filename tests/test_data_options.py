"""Options of `config.data` that change what networks are shown: checked, resumed bit for bit, the same both ways in."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from conftest import assert_same, changed, make_config
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax import interpolation, sampling
from idrid_jax.data import cache, eyes
from idrid_jax.errors import UserError
from idrid_jax.evaluation import run
from idrid_jax.training import build, mesh, record
from idrid_jax.training.loop import train
from idrid_jax.training.step import draw

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__sampling": "temperd"}, "config.data.sampling = 'temperd': did you mean tempered"),
        ({"data__sampling": "tempered", "data__temperature": 0.0}, "config.data.temperature = 0.0: must be above 0"),
        ({"data__temperature": 3.0}, "config.data.temperature = 3.0: natural sampling has none, set config.data.sampl"),
        ({"data__one_side": True, "data__flip": True}, "config.data.flip = True: .*config.data.one_side"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(UserError, match=words) as error:
        config_lib.check(make_config("", "cgan32", **changes))
    assert "\n" not in str(error.value)


def interrupt(*_):
    """A measure that interrupts the run at its first snapshot."""
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


@pytest.mark.parametrize(
    "options",
    [{"data__sampling": "tempered", "data__temperature": 3.0}, {"data__one_side": True}],
    ids=["tempered", "one side"],
)
def test_resumed_is_uninterrupted_and_the_way_in_does_not_matter(config, tmp_path, options):
    resident, stream = (changed(config, data__way=way, **options) for way in ("resident", "stream"))
    whole = train(resident, tmp_path / "whole")
    assert int(train(resident, tmp_path / "parts", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(resident, tmp_path / "parts"), whole)
    assert int(train(stream, tmp_path / "stream", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(stream, tmp_path / "stream"), train(stream, tmp_path / "streamed"))


# -- One side


@dataclasses.dataclass(frozen=True)
class Shown:
    """In place of an update: what it was given, as metrics."""

    over_devices: tuple | None = None

    def __call__(self, state, images, grades, key):
        return dataclasses.replace(state, step=state.step + 1), {"images": images, "grades": grades}


def batches(config, count=3):
    """[(images, grades)] of so many steps, and the split that they come from."""
    split, _ = build.load_training(config, cache.prepared(config.data.data_dir))
    here = mesh.make_mesh(1)
    step = build.compile_step(config, Shown(), here, split, 0)
    state = build.fresh_state(config, build.make_update(config, *build.networks(config))[1], here)
    found = []
    for _ in range(count):
        state, told = step(state)
        found.append((np.asarray(told["images"][0]), np.asarray(told["grades"][0])))
    return found, split


@pytest.mark.parametrize("way", ["resident", "stream"])
def test_batches_are_the_photographs_with_those_of_the_left_mirrored(config, way):
    config = changed(config, data__way=way, data__validation_folds=4)
    plain, split = batches(config)
    turned, same = batches(changed(config, data__one_side=True))
    left = ~eyes.disc_on_right(split.images)
    assert 0 < left.sum() < len(left) and (same.left == left).all() and split.left is None
    np.testing.assert_array_equal(same.images, split.images)  # as they are, for whoever else looks at them
    for (images, grades), (others, same_grades) in zip(plain, turned, strict=True):
        which = [next(i for i, one in enumerate(split.images) if (one == image).all()) for image in images]
        expected = [split.images[i][:, ::-1] if left[i] else split.images[i] for i in which]
        np.testing.assert_array_equal(others, expected)
        np.testing.assert_array_equal(grades, same_grades)


def test_snapshots_are_drawn_with_the_photographs_own_share_of_the_left(config):
    generator, discriminator = build.networks(config)
    state = build.make_update(config, generator, discriminator)[1](jax.random.key(0))
    z, grades = jax.random.normal(jax.random.key(1), (600, 6)), jnp.arange(600) % 5
    right = np.asarray(draw(generator, state, z, grades, 60))
    some = np.asarray(draw(generator, state, z, grades, 60, 0.3))
    np.testing.assert_array_equal(some, draw(generator, state, z, grades, 60, 0.3))
    back = (some == right[:, :, ::-1]).all((1, 2, 3))
    assert (back ^ (some == right).all((1, 2, 3))).all() and 0.24 < back.mean() < 0.36


def test_a_run_of_one_side(config, tmp_path):
    """Its record, its measures and pictures, and what is drawn from it, which needs no photographs."""
    config = changed(config, total_kimg=0.032, data__one_side=True)
    seen = []
    train(config, tmp_path, on_snapshot=(lambda fakes, grades, *photographs: seen.append(photographs) or {},))
    whole = cache.load(cache.prepared(config.data.data_dir), "train", size=8, channels=3, crop=config.data.crop)
    np.testing.assert_array_equal(seen[0][0].images, whole.images)
    left = (~eyes.disc_on_right(whole.images)).mean()
    assert record.read(tmp_path).left == left and 0.1 < left < 0.9
    reals = np.asarray(Image.open(tmp_path / "reals.png"))
    assert (reals[:8, :8] == whole.images[whole.grades == 0][0]).all()

    sampler = sampling.load(tmp_path)
    grades = np.arange(300) % 5
    images = np.stack(list(sampler.images(grades, seed=3)))
    np.testing.assert_array_equal(np.stack(list(sampler.images(grades[:65], seed=3))), images[:65])
    right_alone = dataclasses.replace(sampler, run=dataclasses.replace(sampler.run, left=0.0))
    right = np.stack(list(right_alone.images(grades, seed=3)))
    back = (images == right[:, :, ::-1]).all((1, 2, 3))
    assert (back ^ (images == right).all((1, 2, 3))).all() and abs(back.mean() - left) < 0.12
    other = np.stack(list(sampler.images((grades + 1) % 5, seed=3)))  # the coin does not look at the grade
    other_right = np.stack(list(right_alone.images((grades + 1) % 5, seed=3)))
    np.testing.assert_array_equal((other == other_right[:, :, ::-1]).all((1, 2, 3)), back)
    rows = interpolation.between_latents(sampler, [0, 1, 2], 4, seed=3)
    first = [list(right_alone.images(np.full(5, row), seed=3))[2 * row] for row in range(3)]
    np.testing.assert_array_equal(rows[:, 0], first)


def test_older_records_are_read(tmp_path, phantom_data, tiny):
    manifest = cache.prepared(phantom_data)
    for one_side in (False, True):
        workdir = made_run.make_run(tmp_path / str(one_side), manifest, network="tiny", **{"data.one_side": one_side})
        content = json.loads((workdir / "config.json").read_text())
        del content["data"]["left"]
        if not one_side:
            for name in ("one_side", "temperature"):
                del content["config"]["data"][name]
        (workdir / "config.json").write_text(json.dumps(content))
    sampler = sampling.load(tmp_path / "False")
    assert sampler.run.left == 0 and not sampler.config.data.one_side
    assert not config_lib.differences(sampler.config, config_lib.complete(sampler.config))
    with pytest.raises(UserError, match="not a run's record \\('left'\\)"):
        sampling.load(tmp_path / "True")


def test_the_discriminator_is_asked_about_photographs_as_it_was_shown_them(config, tmp_path):
    """Membership: the mirror image of a photograph has the photograph's own score."""
    train(changed(config, total_kimg=0.016, snapshot_kimg=0.016, data__one_side=True), tmp_path)
    split, _ = build.load_training(config, cache.prepared(config.data.data_dir))
    mirrored = dataclasses.replace(split, images=np.ascontiguousarray(split.images[:, :, ::-1]))
    scores = [run._scores(tmp_path, None, one, split.images, split.grades) for one in (split, mirrored)]
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    np.testing.assert_array_equal(scores[0][0], scores[0][1])
