"""Options of `config.data`: laterality, class merging, held-out photographs and the size of the photographs."""

import dataclasses
import functools
import itertools
import os

import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from conftest import changed, make_config, train
from PIL import Image

from idrid_jax import cli
from idrid_jax import config as config_lib
from idrid_jax.cli import train as cli_train
from idrid_jax.data import cache, class_counts, laterality, phantom, splits
from idrid_jax.data.folds import NO_FOLD
from idrid_jax.data.manifest import find_prepared
from idrid_jax.data.pipeline import host_batches, make_order, resident
from idrid_jax.data.prepare import prepare
from idrid_jax.errors import UserError
from idrid_jax.evaluation import evaluate
from idrid_jax.generation import interpolation, release, sampling
from idrid_jax.models import build_networks
from idrid_jax.models.class_merging import class_map
from idrid_jax.models.functional import ClassMapped
from idrid_jax.training import loop, sharding
from idrid_jax.training.monitoring import sample_images
from idrid_jax.training.run_dir import read_record
from idrid_jax.training.state import fresh_state
from idrid_jax.training.update import make_update, update_networks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# -- Held-out photographs


def test_a_held_out_fold_shares_no_photograph_and_copies_no_image(config):
    manifest = find_prepared(config.data.data_dir)
    whole = splits.load_split(config, manifest, "train")
    examples, validation = splits.load_training_splits(changed(config, data__validation_folds=4), manifest)
    assert 0 < len(validation) < len(examples) and sorted(examples.ids + validation.ids) == sorted(whole.ids)
    for part in (examples, validation):
        assert isinstance(part.images.array, np.memmap) and part.images.array.filename == whole.images.filename
        rows = [whole.ids.index(name) for name in part.ids]
        np.testing.assert_array_equal(part.images, whole.images[rows])
        np.testing.assert_array_equal(part.grades, whole.grades[rows])
    examples, validation = splits.load_training_splits(config, manifest)  # data.validation_folds = 0
    assert examples.ids == whole.ids and not len(validation)


def test_a_run_never_sees_its_fold_of_all_photographs_nor_their_copies(config):
    manifest = find_prepared(config.data.data_dir)
    train, test = (splits.load_split(config, manifest, name) for name in ("train", "test"))
    pixels = dict(zip(train.ids + test.ids, np.concatenate([train.images, test.images])))
    pairs = (train.ids[0], test.ids[1]), (train.ids[3], train.ids[9])  # copies
    manifest = dataclasses.replace(manifest, duplicate_groups=pairs)
    folds_seen = []
    for fold in range(5):
        some = changed(config, data__held_out_fold=fold, data__validation_folds=4)
        examples, validation = splits.load_training_splits(some, manifest)
        could_see, held_out = splits.load_evaluation_splits(some, manifest)
        folds_seen += held_out.ids
        assert sorted(examples.ids + validation.ids) == sorted(could_see.ids) and len(validation)
        assert sorted(could_see.ids + held_out.ids) == sorted(train.ids + test.ids)
        for one, other in pairs:
            assert all((one in part.ids) == (other in part.ids) for part in (examples, validation, held_out))
        is_validation = splits.validation_mask(some, manifest)
        assert could_see.subset(is_validation).ids == validation.ids
        assert set(held_out.grades) == set(range(5))
        for part in (examples, validation, held_out):
            np.testing.assert_array_equal(part.images, [pixels[name] for name in part.ids])
            np.testing.assert_array_equal(part.images[2:4, 1:3], np.asarray(part.images)[2:4, 1:3])
            np.testing.assert_array_equal(part.images[1], pixels[part.ids[1]])
    assert sorted(folds_seen) == sorted(train.ids + test.ids)  # disjoint, and all of them

    could_see, held_out = splits.load_evaluation_splits(config, manifest, 4)  # without a fold: the official splits
    assert could_see.ids == train.ids and held_out.ids == test.ids and held_out.images.shape[1:] == (4, 4, 3)


def test_a_run_with_a_held_out_fold_keeps_it_on_resume_and_counts_its_photographs(
    config, tmp_path, monkeypatch, capsys
):
    """Its counts are recorded, printed, and balanced by sample."""
    config = changed(config, total_kimg=0.032, data__held_out_fold=2)
    state = train(config, tmp_path)
    manifest = find_prepared(config.data.data_dir)
    counts, held_out_counts = (np.bincount(s.grades).tolist() for s in splits.load_evaluation_splits(config, manifest))
    official = manifest.counts["grading"]
    assert (
        counts != official["train"] and np.add(counts, held_out_counts).tolist() == np.add(*official.values()).tolist()
    )
    assert splits.count_photographs(changed(config, data__held_out_fold=NO_FOLD), manifest) == {
        "training": official["train"],
        "held_out": official["test"],
    }
    record = read_record(tmp_path)
    assert record.config.data.held_out_fold == 2
    assert record.counts == counts and record.held_out_counts == held_out_counts
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda *arguments: state)
        cli_train._train(config_lib.validated(config), tmp_path)
    assert f"by grade: {counts}" in capsys.readouterr().out
    assert cli.main(["sample", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--balance"]) == 0
    assert str([max(counts) - count for count in counts]) in capsys.readouterr().out

    with pytest.raises(UserError, match="config.data.held_out_fold: 2 -> 3"):
        train(changed(config, total_kimg=0.064, data__held_out_fold=3), tmp_path)
    with pytest.raises(UserError, match="held_out_fold = 5: must be in"):
        config_lib.validated(changed(config, data__held_out_fold=5))


# -- Laterality


def batches(config, split, count=3):
    """The first `count` batches, (images, grades), of the pipeline that `config` names."""
    if config.data.pipeline == "tfdata":
        return list(itertools.islice(host_batches(config, split, 0), count))
    mesh, order = sharding.make_mesh(1), make_order(config, split)
    data = resident.put(split, mesh)
    batch = jax.jit(lambda step: resident.batch(order, *data, step, mesh))
    return [tuple(map(np.asarray, batch(step))) for step in range(count)]


@pytest.mark.parametrize("pipeline", ["resident", "tfdata"])
def test_batches_are_the_photographs_with_left_eyes_mirrored(config, pipeline):
    config = changed(config, data__pipeline=pipeline, data__validation_folds=4)
    manifest = find_prepared(config.data.data_dir)
    split, _ = splits.load_training_splits(config, manifest)
    canonical, _ = splits.load_training_splits(changed(config, data__canonicalize_laterality=True), manifest)
    left = laterality.is_left_eye(split.images)
    assert 0 < left.sum() < len(left) and (canonical.is_left_eye == left).all() and split.is_left_eye is None
    np.testing.assert_array_equal(canonical.images, split.images)  # only the pipelines mirror
    for plain, mirrored in zip(batches(config, split), batches(config, canonical), strict=True):
        rows = [next(i for i, one in enumerate(split.images) if (one == image).all()) for image in plain[0]]
        expected = [split.images[i][:, ::-1] if left[i] else split.images[i] for i in rows]
        np.testing.assert_array_equal(mirrored[0], expected)
        np.testing.assert_array_equal(mirrored[1], plain[1])


def test_generated_images_are_mirrored_in_the_given_share(config):
    generator, state = build_networks(config)[0], fresh_state(config, sharding.make_mesh(1))
    z, grades = jax.random.normal(jax.random.key(1), (600, 6)), jnp.arange(600) % 5
    plain = np.asarray(sample_images(generator, state, z, grades, 60))
    some = np.asarray(sample_images(generator, state, z, grades, 60, 0.3))
    np.testing.assert_array_equal(some, sample_images(generator, state, z, grades, 60, 0.3))
    mirrored = (some == plain[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored ^ (some == plain).all((1, 2, 3))).all() and 0.24 < mirrored.mean() < 0.36


def test_a_canonicalized_run_records_its_share_of_left_eyes_and_samples_with_it(config, tmp_path):
    config = changed(config, total_kimg=0.032, data__canonicalize_laterality=True)
    seen = []
    train(config, tmp_path, metrics=lambda fakes, grades, *photographs: seen.append(photographs) or {})
    whole = cache.load(find_prepared(config.data.data_dir), "train", size=8, channels=3, crop=config.data.crop)
    np.testing.assert_array_equal(seen[0][0].images, whole.images)
    share = laterality.is_left_eye(whole.images).mean()
    assert read_record(tmp_path).left_eye_share == share and 0.1 < share < 0.9
    reals = np.asarray(Image.open(tmp_path / "reals.png"))
    assert (reals[:8, :8] == whole.images[whole.grades == 0][0]).all()

    sampler = sampling.load_sampler(tmp_path)
    grades = np.arange(300) % 5
    images = np.stack(list(sampler.images(grades, seed=3)))
    np.testing.assert_array_equal(np.stack(list(sampler.images(grades[:65], seed=3))), images[:65])
    plain_sampler = dataclasses.replace(sampler, run=dataclasses.replace(sampler.run, left_eye_share=0.0))
    plain = np.stack(list(plain_sampler.images(grades, seed=3)))
    mirrored = (images == plain[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored ^ (images == plain).all((1, 2, 3))).all() and abs(mirrored.mean() - share) < 0.12
    other = np.stack(list(sampler.images((grades + 1) % 5, seed=3)))  # mirroring does not depend on the grade
    other_plain = np.stack(list(plain_sampler.images((grades + 1) % 5, seed=3)))
    np.testing.assert_array_equal((other == other_plain[:, :, ::-1]).all((1, 2, 3)), mirrored)
    rows = interpolation.interpolate_latents(sampler, [0, 1, 2], 4, seed=3)
    first = [list(plain_sampler.images(np.full(5, row), seed=3))[2 * row] for row in range(3)]
    np.testing.assert_array_equal(rows[:, 0], first)


def test_the_membership_attack_ignores_laterality(config):
    """A photograph and its mirror image reach the discriminator as the same image."""
    images = np.asarray(splits.load_split(config, find_prepared(config.data.data_dir), "train").images)
    config = changed(config, data__canonicalize_laterality=True)
    plain, mirrored = (evaluate._as_trained_on(x, config) for x in (images, np.ascontiguousarray(images[:, :, ::-1])))
    np.testing.assert_array_equal(plain, mirrored)


# -- Class merging

MERGED, CLASSES = "0 1+2  4+3", (0, 1, 1, 3, 3)


def test_class_map():
    assert class_map(MERGED) == CLASSES
    assert class_map("") == class_map("4 3 2 1 0") == (0, 1, 2, 3, 4)
    assert class_map("0+1+2+3+4") == (0,) * 5


def test_merged_grades_are_one_class_to_the_networks(config, gradient_descent):
    """An update with merged grades equals an update of plain networks with the classes as grades."""
    plain = changed(config, loss__feature_matching=0.5, ema_kimg=1.0)
    merged = changed(plain, data__merge_classes=MERGED)
    rng = np.random.default_rng(0)
    images, grades = rng.integers(0, 256, (10, 8, 8, 3), np.uint8), np.arange(10, dtype=np.int32) % 5
    classes, z = np.asarray(CLASSES, np.int32)[grades], rng.standard_normal((10, 6), np.float32)
    results = []
    for some, labels in ((merged, grades), (plain, classes)):
        generator, discriminator = build_networks(some)
        step = jax.jit(functools.partial(update_networks, make_update(some)))
        state, metrics = step(fresh_state(some, sharding.make_mesh(1)), images, labels, jax.random.key(1))
        generated = sample_images(generator, state, jnp.asarray(z), jnp.asarray(labels), 10)
        logits = discriminator.eval(
            state.d.params, state.d.stats, jnp.asarray(images, jnp.float32), jnp.asarray(labels)
        )
        results.append((state, metrics, generated, logits))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_run_with_merged_classes_is_sampled_and_interpolated_by_grade(tmp_path, phantom_data, tiny):
    manifest = find_prepared(phantom_data)
    make = lambda name, **changes: sampling.load_sampler(
        made_run.make_run(tmp_path / name, manifest, network="tiny", **changes), batch_statistics="running"
    )
    merged, plain = make("merged", **{"data.merge_classes": MERGED}), make("plain")
    assert isinstance(merged.generator, ClassMapped) and not isinstance(plain.generator, ClassMapped)
    grades = np.arange(20) % 5
    images = lambda sampler, grades: np.stack(list(sampler.images(grades)))
    np.testing.assert_array_equal(images(merged, grades), images(plain, np.asarray(CLASSES)[grades]))
    rows = interpolation.interpolate_grades(merged, [1, 2], 2, 3)
    assert (rows[:, 0] == rows[:, 1]).all() and (rows[:, 0] == rows[:, 2]).all()
    np.testing.assert_array_equal(
        interpolation.interpolate_grades(merged, [0, 2, 4], 2, 5),
        interpolation.interpolate_grades(plain, [0, 1, 3], 2, 5),
    )
    np.testing.assert_array_equal(
        interpolation.interpolate_latents(merged, [4, 2], 3), interpolation.interpolate_latents(plain, [3, 1], 3)
    )
    release.write_release(merged, tmp_path / "out", [1] * 5)
    assert "0 1+2 4+3" in (tmp_path / "out" / "README.txt").read_text()


COUNTS = (8, 5, 8, 6, 5)  # photographs by grade


@pytest.mark.parametrize(
    "merge_classes, min_images, message",
    [
        ("", 6, "learn MILD from 5 .*min_images_per_class = 6.*merge_classes='0 1\\+2 3 4'"),
        ("", 9, "NO_DR from 8 .*merge_classes='0\\+1 2 3 4'"),
        ("0+1 2 3+4", 12, "learn MODERATE from 8 .*merge_classes='0\\+1 2\\+3\\+4'"),
        ("0+1+2 3+4", 14, "SEVERE and PROLIFERATIVE from 11 .*merge_classes='0\\+1\\+2\\+3\\+4'"),
    ],
)
def test_a_class_with_too_few_photographs_is_refused(merge_classes, min_images, message):
    grades = np.repeat(np.arange(5), COUNTS)
    with pytest.raises(UserError, match=message):
        class_counts.check_class_counts(grades, merge_classes, min_images, "tiny")
    class_counts.check_class_counts(grades, "0+1+2+3+4", min_images, "tiny")  # must not raise


def test_only_conditional_networks_need_photographs_of_each_class(config):
    config = changed(config, data__min_images_per_class=9)
    manifest = find_prepared(config.data.data_dir)
    with pytest.raises(UserError, match="data.min_images_per_class"):
        splits.load_training_splits(config, manifest)
    assert len(splits.load_training_splits(changed(config, network="tiny_unconditional"), manifest)[0]) == 32


def test_idrid_has_enough_of_each_grade():
    counts = [116, 17, 117, 63, 42]  # after the audit, without the validation fold
    min_images = config_lib.default_config().data.min_images_per_class
    class_counts.check_class_counts(np.repeat(np.arange(5), counts), "", min_images, "cgan32")  # must not raise


# -- Networks larger than the photographs


@pytest.fixture(scope="module")
def release_of_150(tmp_path_factory):
    """A prepared release of photographs of 150 x 226 pixels."""
    folder = tmp_path_factory.mktemp("150")
    few = dict(train=(2, 1, 1, 1, 1), test=(1, 0, 0, 0, 0), segmentation=(0, 0), localization=False)
    return prepare(phantom.make_release(folder / "release", height=150, **few), folder / "data", tfds=False)[0]


@pytest.mark.parametrize(
    "network, crop, message",
    [
        ("dcgan128", "field_of_view", None),
        ("dcgan128", "letterbox", None),
        ("dcgan256", "field_of_view", "dcgan256.* 1[45].: .* is 128; choose dcgan128"),
        ("dcgan1024", "letterbox", "dcgan1024.* 226: .* is 128; choose dcgan128"),
    ],
)
def test_a_network_larger_than_the_photographs_is_refused(release_of_150, network, crop, message):
    config = make_config("", network, data__crop=crop)
    if message is None:
        splits.check_size(config, release_of_150)  # must not raise
    else:
        with pytest.raises(UserError, match=message):
            splits.load_training_splits(config, release_of_150)
        assert not (release_of_150.folder / "cache").exists()


def test_the_size_is_not_checked_without_the_release(release_of_150):
    """A cache is enough to train from."""
    gone = tuple(
        dataclasses.replace(one, source=dataclasses.replace(one.source, path=one.source.path / "gone"))
        for one in release_of_150.grading["train"]
    )
    manifest = dataclasses.replace(release_of_150, grading=release_of_150.grading | {"train": gone})
    splits.check_size(make_config("", "dcgan1024"), manifest)  # must not raise


@pytest.mark.real_data
@pytest.mark.parametrize("folder, side", [("IDRID_DIR", 712), ("IDRID_SAMPLE_DIR", 2848)])
def test_the_resolution_of_real_photographs(folder, side, tmp_path):
    if folder not in os.environ:
        pytest.skip(f"{folder} is not set")
    manifest, _ = prepare(os.environ[folder], tmp_path, tfds=False)
    assert abs(cache.available_training_size(manifest, "field_of_view", 1024) - side) <= 0.01 * side
    assert cache.available_training_size(manifest, "field_of_view", 128) >= 128
    config = make_config("", "dcgan1024")
    if side > 1024:
        splits.check_size(config, manifest)  # must not raise
    else:
        with pytest.raises(UserError, match="is 512; choose dcgan512"):
            splits.check_size(config, manifest)
    assert cache.available_training_size(manifest, "letterbox", 1024) == {712: 1072, 2848: 4288}[side]
