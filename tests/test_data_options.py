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
from idrid_jax.data import cache, class_merging, laterality, phantom, splits
from idrid_jax.data.manifest import find_prepared
from idrid_jax.data.prepare import prepare
from idrid_jax.errors import UserError
from idrid_jax.evaluation import evaluate
from idrid_jax.generation import interpolation, sampling
from idrid_jax.models import build_networks
from idrid_jax.models.pooled import Pooled
from idrid_jax.training import build, record, sharding, train_step
from idrid_jax.training.loop import train
from idrid_jax.training.update import draw

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__sampling": "temperd"}, "config.data.sampling = 'temperd': did you mean tempered"),
        ({"data__sampling": "tempered", "data__temperature": 0.0}, "config.data.temperature = 0.0: must be above 0"),
        ({"data__temperature": 3.0}, "config.data.temperature = 3.0: natural sampling has none, set config.data.sampl"),
        ({"data__canonicalize_laterality": True, "data__flip": True}, "config.data.flip = True: .*config.data.canonicalize_laterality"),
        (
            {"data__merge_classes": "0 1+2 3"},
            "config.data.merge_classes = '0 1\\+2 3': 4 is there 0 times; name each grade, 0 to 4, exactly once",
        ),
        ({"data__merge_classes": "0 1+2 2+3 4"}, "config.data.merge_classes = .*: 2 is there 2 times"),
        ({"data__merge_classes": "0,1+2 3 4"}, "config.data.merge_classes = .*: '0,1' is no grade"),
        ({"data__merge_classes": "0 1+ 2 3 4"}, "config.data.merge_classes = .*: '' is no grade"),
        ({"data__merge_classes": "0 1+2 3+5"}, "config.data.merge_classes = .*: '5' is no grade"),
        ({"network": "dcgan28", "data__merge_classes": "0 1+2 3 4"}, "config.data.merge_classes = .*: dcgan28 is unconditional"),
        ({"data__min_images_per_class": -1}, "config.data.min_images_per_class = -1: must not be negative"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(UserError, match=words) as error:
        config_lib.check(changed(make_config("", "cgan32"), **changes))
    assert "\n" not in str(error.value)


def interrupt(*_):
    """A measure that interrupts the run at its first snapshot."""
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


@pytest.mark.parametrize(
    "options",
    [
        {"data__sampling": "tempered", "data__temperature": 3.0},
        {"data__canonicalize_laterality": True},
        {"data__merge_classes": "0 1+2 3+4", "data__sampling": "balanced", "loss__feature_matching": 0.5},
    ],
    ids=["tempered", "one side", "pools"],
)
def test_resumed_is_uninterrupted_and_the_way_in_does_not_matter(config, tmp_path, options):
    resident, stream = (changed(config, data__pipeline=way, **options) for way in ("resident", "tfdata"))
    whole = train(resident, tmp_path / "whole")
    assert int(train(resident, tmp_path / "parts", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(resident, tmp_path / "parts"), whole)
    assert int(train(stream, tmp_path / "tfdata", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(stream, tmp_path / "tfdata"), train(stream, tmp_path / "streamed"))


# -- One side


@dataclasses.dataclass(frozen=True)
class Shown:
    """In place of an update: what it was given, as metrics."""

    over_devices: tuple | None = None

    def __call__(self, state, images, grades, key):
        return dataclasses.replace(state, step=state.step + 1), {"images": images, "grades": grades}


def batches(config, count=3):
    """[(images, grades)] of so many steps, and the split that they come from."""
    split, _ = splits.load_training_splits(config, find_prepared(config.data.data_dir))
    here = sharding.make_mesh(1)
    step = train_step.compile_step(config, Shown(), here, split, 0)
    state = build.fresh_state(config, build.make_update(config, *build_networks(config))[1], here)
    found = []
    for _ in range(count):
        state, told = step(state)
        found.append((np.asarray(told["images"][0]), np.asarray(told["grades"][0])))
    return found, split


@pytest.mark.parametrize("way", ["resident", "tfdata"])
def test_batches_are_the_photographs_with_those_of_the_left_mirrored(config, way):
    config = changed(config, data__pipeline=way, data__validation_folds=4)
    plain, split = batches(config)
    turned, same = batches(changed(config, data__canonicalize_laterality=True))
    left = ~laterality.disc_on_right(split.images)
    assert 0 < left.sum() < len(left) and (same.left == left).all() and split.left is None
    np.testing.assert_array_equal(same.images, split.images)  # as they are, for whoever else looks at them
    for (images, grades), (others, same_grades) in zip(plain, turned, strict=True):
        which = [next(i for i, one in enumerate(split.images) if (one == image).all()) for image in images]
        expected = [split.images[i][:, ::-1] if left[i] else split.images[i] for i in which]
        np.testing.assert_array_equal(others, expected)
        np.testing.assert_array_equal(grades, same_grades)


def test_snapshots_are_drawn_with_the_photographs_own_share_of_the_left(config):
    generator, discriminator = build_networks(config)
    state = build.make_update(config, generator, discriminator)[1](jax.random.key(0))
    z, grades = jax.random.normal(jax.random.key(1), (600, 6)), jnp.arange(600) % 5
    right = np.asarray(draw(generator, state, z, grades, 60))
    some = np.asarray(draw(generator, state, z, grades, 60, 0.3))
    np.testing.assert_array_equal(some, draw(generator, state, z, grades, 60, 0.3))
    back = (some == right[:, :, ::-1]).all((1, 2, 3))
    assert (back ^ (some == right).all((1, 2, 3))).all() and 0.24 < back.mean() < 0.36


def test_a_run_of_one_side(config, tmp_path):
    """Its record, its measures and pictures, and what is drawn from it, which needs no photographs."""
    config = changed(config, total_kimg=0.032, data__canonicalize_laterality=True)
    seen = []
    train(config, tmp_path, on_snapshot=(lambda fakes, grades, *photographs: seen.append(photographs) or {},))
    whole = cache.load(find_prepared(config.data.data_dir), "train", size=8, channels=3, crop=config.data.crop)
    np.testing.assert_array_equal(seen[0][0].images, whole.images)
    left = (~laterality.disc_on_right(whole.images)).mean()
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
    manifest = find_prepared(phantom_data)
    for canonicalize_laterality in (False, True):
        workdir = made_run.make_run(tmp_path / str(canonicalize_laterality), manifest, network="tiny", **{"data.canonicalize_laterality": canonicalize_laterality})
        content = json.loads((workdir / "config.json").read_text())
        del content["data"]["left"]
        if not canonicalize_laterality:
            for name in ("canonicalize_laterality", "temperature"):
                del content["config"]["data"][name]
        (workdir / "config.json").write_text(json.dumps(content))
    sampler = sampling.load(tmp_path / "False")
    assert sampler.run.left == 0 and not sampler.config.data.canonicalize_laterality
    assert not config_lib.differences(sampler.config, config_lib.complete(sampler.config))
    with pytest.raises(UserError, match="not a run's record \\('left'\\)"):
        sampling.load(tmp_path / "True")


def test_the_discriminator_is_asked_about_photographs_as_it_was_shown_them(config, tmp_path):
    """Membership: the mirror image of a photograph has the photograph's own score."""
    train(changed(config, total_kimg=0.016, snapshot_kimg=0.016, data__canonicalize_laterality=True), tmp_path)
    split, _ = splits.load_training_splits(config, find_prepared(config.data.data_dir))
    mirrored = dataclasses.replace(split, images=np.ascontiguousarray(split.images[:, :, ::-1]))
    scores = [evaluate._scores(tmp_path, None, one, split) for one in (split, mirrored)]
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    np.testing.assert_array_equal(scores[0][0], scores[0][1])


# -- Pools of grades

POOLS, CLASSES = "0 1+2  4+3", (0, 1, 1, 3, 3)


def test_pools_are_read():
    assert class_merging.classes(POOLS) == CLASSES
    assert class_merging.classes("") == class_merging.classes("4 3 2 1 0") == (0, 1, 2, 3, 4)
    assert class_merging.classes("0+1+2+3+4") == (0,) * 5


@pytest.mark.parametrize("options", [{}, {"loss__feature_matching": 0.5, "ema_kimg": 1.0}], ids=["plain", "features"])
def test_grades_of_a_pool_are_one_to_the_networks(config, options):
    """Whatever is done with grades, it is what the plain networks do with the classes."""
    pooled, plain = changed(config, data__merge_classes=POOLS, **options), changed(config, **options)
    rng = np.random.default_rng(0)
    images, grades = rng.integers(0, 256, (10, 8, 8, 3), np.uint8), np.arange(10, dtype=np.int32) % 5
    told, z = np.asarray(CLASSES, np.int32)[grades], rng.standard_normal((10, 6), np.float32)
    results = []
    for some, labels in ((pooled, grades), (plain, told)):
        generator, discriminator = build_networks(some)
        update, init = build.make_update(some, generator, discriminator)
        state, metrics = jax.jit(update)(jax.jit(init)(jax.random.key(0)), images, labels, jax.random.key(1))
        drawn = draw(generator, state, jnp.asarray(z), jnp.asarray(labels), 10)
        read = discriminator.eval(state.d.params, state.d.stats, jnp.asarray(images, jnp.float32), jnp.asarray(labels))
        results.append((state, metrics, drawn, read))
    assert_same(*results)


def test_a_pooled_run_is_sampled_and_interpolated_by_grade(tmp_path, phantom_data, tiny):
    manifest = find_prepared(phantom_data)
    make = lambda name, **changes: sampling.load(
        made_run.make_run(tmp_path / name, manifest, network="tiny", **changes), statistics="running"
    )
    pooled, plain = make("pooled", **{"data.merge_classes": POOLS}), make("plain")
    assert isinstance(pooled.generator, Pooled) and not isinstance(plain.generator, Pooled)
    grades = np.arange(20) % 5
    images = lambda sampler, grades: np.stack(list(sampler.images(grades)))
    np.testing.assert_array_equal(images(pooled, grades), images(plain, np.asarray(CLASSES)[grades]))
    way = interpolation.between_grades(pooled, [1, 2], 2, 3)
    assert (way[:, 0] == way[:, 1]).all() and (way[:, 0] == way[:, 2]).all()
    np.testing.assert_array_equal(
        interpolation.between_grades(pooled, [0, 2, 4], 2, 5), interpolation.between_grades(plain, [0, 1, 3], 2, 5)
    )
    np.testing.assert_array_equal(
        interpolation.between_latents(pooled, [4, 2], 3), interpolation.between_latents(plain, [3, 1], 3)
    )
    sampling.write_release(pooled, tmp_path / "out", [1] * 5)
    assert "joined by + were one and the same to it: 0 1+2 4+3." in (tmp_path / "out" / "README.txt").read_text()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"min_images_per_class": 6}, "'tiny' would learn MILD from 5 .*min_images_per_class = 6.*merge_classes='0 1\\+2 3 4'"),
        ({"min_images_per_class": 9}, "NO_DR from 8 .*merge_classes='0\\+1 2 3 4'"),
        ({"min_images_per_class": 12, "merge_classes": "0+1 2 3+4"}, "learn MODERATE from 8 .*merge_classes='0\\+1 2\\+3\\+4'"),
        ({"min_images_per_class": 14, "merge_classes": "0+1+2 3+4"}, "SEVERE and PROLIFERATIVE from 11 .*merge_classes='0\\+1\\+2\\+3\\+4'"),
    ],
)
def test_too_few_photographs_of_a_class_are_refused(config, tmp_path, options, words):
    config = changed(config, total_kimg=0.008, **{f"data__{name}": value for name, value in options.items()})
    with pytest.raises(UserError, match=words) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert int(train(changed(config, network="tiny_unconditional", data__merge_classes=""), tmp_path / "other").step) == 1


def test_idrid_has_enough_of_each_grade_by_itself():
    counts = [116, 17, 117, 63, 42]  # after the audit, without the validation photographs
    least = config_lib.default_config().data.min_images_per_class
    class_merging.check_enough(np.repeat(np.arange(5), counts), "", least, "cgan32")


# -- Networks larger than the photographs


@pytest.fixture(scope="module")
def release_of_150(tmp_path_factory):
    folder = tmp_path_factory.mktemp("150")
    few = dict(train=(2, 1, 1, 1, 1), test=(1, 0, 0, 0, 0), segmentation=(0, 0), localization=False)
    return prepare(phantom.draw_release(folder / "release", height=150, **few), folder / "data", tfds=False)[0]


@pytest.mark.parametrize(
    "network, crop, words",
    [
        ("dcgan128", "field_of_view", None),
        ("dcgan128", "letterbox", None),
        ("dcgan256", "field_of_view", "generates images of 256 pixels, .* release have only 1[45].: .* is 128; choose dcgan128"),
        ("dcgan1024", "letterbox", "generates images of 1024 pixels, .* only 226: .* is 128; choose dcgan128"),
    ],
)
def test_a_network_larger_than_the_photographs_is_refused(release_of_150, tmp_path, network, crop, words):
    config = make_config(release_of_150.folder.parent.parent, network, data__crop=crop)
    if words is None:
        splits.check_size(config, release_of_150)
        return
    with pytest.raises(UserError, match=words) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (release_of_150.folder / "cache").exists()


def test_where_the_release_is_gone_its_cache_will_do(release_of_150):
    gone = tuple(
        dataclasses.replace(one, source=dataclasses.replace(one.source, path=one.source.path / "gone"))
        for one in release_of_150.grading["train"]
    )
    manifest = dataclasses.replace(release_of_150, grading=release_of_150.grading | {"train": gone})
    splits.check_size(make_config("", "dcgan1024"), manifest)


@pytest.mark.parametrize("folder, side", [("IDRID_DIR", 712), ("IDRID_SAMPLE_DIR", 2848)])
def test_what_real_photographs_hold(folder, side, tmp_path):
    if folder not in os.environ:
        pytest.skip(f"{folder} is not set")
    manifest, _ = prepare(os.environ[folder], tmp_path, tfds=False)
    assert abs(cache.size_held(manifest, "field_of_view", 1024) - side) <= 0.01 * side
    assert cache.size_held(manifest, "field_of_view", 128) >= 128
    config = make_config("", "dcgan1024")
    if side > 1024:
        splits.check_size(config, manifest)
    else:
        with pytest.raises(UserError, match="largest size that fits is 512; choose dcgan512"):
            splits.check_size(config, manifest)
    assert cache.size_held(manifest, "letterbox", 1024) == {712: 1072, 2848: 4288}[side]
