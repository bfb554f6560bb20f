"""Preparing and caching: complete or not at all under kills, races, damage and full disks."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idrid_jax.data import atomic, cache, folds
from idrid_jax.data.manifest import TFDS_VERSION, Manifest, find_prepared
from idrid_jax.data.prepare import prepare
from idrid_jax.data.preprocess import VERSION, preprocess
from idrid_jax.data.release import ReleaseWriter, read_release
from idrid_jax.errors import UserError

OPTIONS = {"size": 16, "channels": 3, "crop": "field_of_view"}


def photograph(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :90]
    image = np.zeros((60, 90, 3), np.uint8)
    inside = np.hypot(x - 40, y - 30) <= 34
    image[inside] = rng.integers(60, 220, (inside.sum(), 3))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "made up"
    with ReleaseWriter(out, "made up") as writer:
        for i in range(6):
            writer.add_graded("train", photograph(i), i % 5, (-1, 0, 1, 2, 0, 1)[i])
        writer.add_graded("train", photograph(0), 0, 2)  # IDRiD_007: a copy of IDRiD_001 that agrees with it
        writer.add_graded("test", photograph(10), 3, 1)
        writer.add_located("train", photograph(0), (20.0, 30.0), (40.0, 31.0))
        writer.add_segmented("train", photograph(20), {"MA": np.ones((60, 90), bool)})
    return out


@pytest.fixture
def manifest(release, tmp_path) -> Manifest:
    return prepare(release, tmp_path / "data", tfds=False)[0]


def expected(release: Path, split: str) -> np.ndarray:
    records = [record for record in read_release(release).grading if record.split == split]
    records = sorted(records, key=lambda record: record.id)
    return np.stack([preprocess(record.image.read(), record.id, **OPTIONS) for record in records])


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".partial-*"))


def python(code: str, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# --- prepare and its manifest


def test_a_prepared_release_is_found_again(release, tmp_path):
    manifest, text = prepare(release, tmp_path, tfds=False)
    assert find_prepared(tmp_path) == manifest
    assert find_prepared(tmp_path, manifest.fingerprint[:8]) == manifest
    assert find_prepared(tmp_path, str(release)) == manifest
    assert manifest.fingerprint == read_release(release).fingerprint() and manifest.name == "made up"
    assert manifest.counts["grading"] == {"train": [3, 1, 1, 1, 1], "test": [0, 0, 0, 1, 0]}
    assert manifest.counts["segmentation"]["train"]["MA"] == 1 and manifest.counts["localization"]["train"] == 1
    assert manifest.duplicate_groups == (("train/IDRiD_001", "train/IDRiD_007"),)
    assert manifest.fingerprint[:16] in text and "already" not in text
    again, text = prepare(release, tmp_path, tfds=False)
    assert again == manifest and "already prepared" in text


def test_exclusions_are_recorded_and_change_the_fingerprint(tmp_path):
    with ReleaseWriter(tmp_path / "leaky", "made up") as writer:
        for grade in (0, 1):
            writer.add_graded("train", photograph(grade), grade)
        writer.add_graded("test", photograph(1), 1)
    clean, text = prepare(tmp_path / "leaky", tmp_path / "data", tfds=False)
    leaky, _ = prepare(tmp_path / "leaky", tmp_path / "data", tfds=False, keep_leaks=True)
    assert [len(one.grading["train"]) for one in (clean, leaky)] == [1, 2]
    assert "IDRiD_002" in clean.exclusions[0] and clean.exclusions[0] in text and leaky.exclusions == ()
    assert clean.fingerprint != leaky.fingerprint and find_prepared(tmp_path / "data") == leaky
    assert find_prepared(tmp_path / "data", str(tmp_path / "leaky")) == leaky  # the last of one path


def test_copies_of_a_photograph_are_held_out_together(manifest):
    """The first and the last of the 7 photographs are copies."""
    for n in (2, 3):
        held = folds.validation_mask(manifest, n)
        assert held.shape == (7,) and held.dtype == bool and held[0] == held[6]
    assert not folds.validation_mask(manifest, 0).any() and not folds.validation_mask(manifest, 8).any()
    grades = np.array([photograph.grade for photograph in manifest.grading["train"]])
    scarce = np.bincount(grades, minlength=5)[grades] < 2
    held = folds.validation_mask(manifest, 2)
    assert scarce.any() and not held[scarce].any() and held.any()


def test_nothing_prepared(tmp_path):
    with pytest.raises(UserError, match="idrid-jax prepare --release PATH"):
        find_prepared(tmp_path)


def test_unknown_damaged_and_missing_releases_are_refused(manifest):
    data_dir = manifest.folder.parent.parent
    with pytest.raises(UserError, match="has not been prepared.*made up"):
        find_prepared(data_dir, "0123abcd")
    (manifest.folder / "release.json").write_text('{"fingerprint": ')
    with pytest.raises(UserError, match="cannot be read"):
        find_prepared(data_dir)
    manifest.folder.rename(manifest.folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="is gone"):
        find_prepared(data_dir)


def test_a_damaged_manifest_does_not_hide_a_named_release(manifest, release):
    root = manifest.folder.parent
    (root / ("f" * 64)).mkdir()
    (root / ("f" * 64) / "release.json").write_text("{")
    assert find_prepared(root.parent, str(release)) == manifest
    with pytest.raises(UserError, match="damaged: .*fff"):
        find_prepared(root.parent, "/another")
    (root / "latest").unlink()
    assert find_prepared(root.parent, manifest.fingerprint[:8]) == manifest
    with pytest.raises(UserError, match="no release has been prepared under"):
        find_prepared(root.parent)


def test_copies_of_a_scarce_photograph_are_not_held_out(manifest):
    """Both copies stay training examples, although the other copy's grade is not scarce."""
    first, *others = manifest.grading["train"]
    many = [dataclasses.replace(first, id=f"train/more_{i}", grade=2) for i in range(9)]
    one = dataclasses.replace(first, id="train/one", grade=1)
    for place in range(10):
        photographs = tuple([*many[:place], one, *many[place:]])
        pair = (one.id, many[place - 1].id)
        changed = dataclasses.replace(manifest, grading={"train": photographs, "test": ()}, duplicate_groups=(pair,))
        held = dict(zip((photograph.id for photograph in photographs), folds.validation_mask(changed, 4)))
        assert not held[pair[0]] and not held[pair[1]] and any(held.values())


def test_a_damaged_manifest_is_written_again(manifest, release):
    (manifest.folder / "release.json").write_text("")
    again, text = prepare(release, manifest.folder.parent.parent, tfds=False)
    assert again == manifest and "already" not in text


# --- the cache


def test_pixels_labels_and_order(manifest, release):
    for split, count in (("train", 7), ("test", 1)):
        for _ in range(2):  # filled, then read
            found = cache.load(manifest, split, **OPTIONS)
            np.testing.assert_array_equal(found.images, expected(release, split))
            assert found.images.shape == (count, 16, 16, 3) and found.images.dtype == np.uint8
            assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
            assert found.grades.dtype == found.edema.dtype == np.int32
    train = cache.load(manifest, "train", **OPTIONS)
    assert train.ids == tuple(f"train/IDRiD_{i:03d}" for i in range(1, 8))
    assert train.grades.tolist() == [0, 1, 2, 3, 4, 0, 0] and train.edema.tolist() == [-1, 0, 1, 2, 0, 1, 2]


def test_every_option_is_part_of_the_key(manifest):
    for change in ({}, {"size": 8}, {"channels": 1}, {"crop": "letterbox"}):
        cache.load(manifest, "train", **OPTIONS | change)
    found = sorted(path.name for path in (manifest.folder / "cache").iterdir())
    assert found == sorted(
        f"{key}_v{VERSION}"
        for key in ("16_3_field_of_view", "8_3_field_of_view", "16_1_field_of_view", "16_3_letterbox")
    )


def folder_of(manifest) -> Path:
    return manifest.folder / "cache" / f"16_3_field_of_view_v{VERSION}" / "train"


def truncate(folder):
    os.truncate(folder / "images.npy", (folder / "images.npy").stat().st_size - 100)


def lengthen(folder):
    with (folder / "images.npy").open("ab") as file:
        file.write(b"0")


def other_shape(folder):
    np.save(folder / "images.npy", np.zeros((7, 8, 8, 3), np.uint8))


def no_meta(folder):
    (folder / "meta.json").unlink()


def other_meta(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"crop": "letterbox"}))


def empty(folder):
    (folder / "images.npy").write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, lengthen, other_shape, no_meta, other_meta, empty])
def test_a_damaged_cache_is_logged_and_filled_again(manifest, release, damage, caplog):
    cache.load(manifest, "train", **OPTIONS)
    damage(folder_of(manifest))
    np.testing.assert_array_equal(cache.load(manifest, "train", **OPTIONS).images, expected(release, "train"))
    assert "damaged cache" in caplog.text and not leftovers(manifest.folder)
    caplog.clear()
    cache.load(manifest, "train", **OPTIONS)
    assert not caplog.text


def test_a_changed_or_missing_photograph_is_refused(tmp_path):
    with ReleaseWriter(tmp_path / "release", "made up") as writer:
        for i in range(3):
            writer.add_graded("train", photograph(i), i)
    manifest, _ = prepare(tmp_path / "release", tmp_path / "data", tfds=False)
    path = manifest.grading["train"][1].source.path
    path.write_bytes(photograph(7))
    with pytest.raises(UserError, match="IDRiD_002.jpg: has changed since"):
        cache.load(manifest, "train", **OPTIONS)
    path.unlink()
    with pytest.raises(UserError, match="IDRiD_002.jpg"):
        cache.load(manifest, "train", **OPTIONS)
    assert not folder_of(manifest).exists() and not leftovers(manifest.folder)


def test_a_split_without_photographs_and_bad_options_are_refused(manifest):
    with pytest.raises(UserError, match="'test'"):
        cache.load(dataclasses.replace(manifest, grading=manifest.grading | {"test": ()}), "test", **OPTIONS)
    with pytest.raises(UserError, match="split 'val'"):
        cache.load(manifest, "val", **OPTIONS)
    with pytest.raises(UserError, match="crop 'squash'"):
        cache.load(manifest, "train", **OPTIONS | {"crop": "squash"})


def test_a_zipped_release_has_the_same_fingerprint_and_pixels(release, manifest, tmp_path):
    (tmp_path / "zips").mkdir()
    for part in ("A. Segmentation", "B. Disease Grading", "C. Localization"):
        shutil.make_archive(str(tmp_path / "zips" / part), "zip", release, part)
    zipped, text = prepare(tmp_path / "zips", manifest.folder.parent.parent, tfds=False)
    assert zipped.fingerprint == manifest.fingerprint and "already" not in text
    assert find_prepared(manifest.folder.parent.parent, str(tmp_path / "zips")) == zipped
    np.testing.assert_array_equal(cache.load(zipped, "train", **OPTIONS).images, expected(release, "train"))


# --- killed processes, races, full disks

LOAD = """
import os, sys, time
from idrid_jax.data import cache
from idrid_jax.data.manifest import find_prepared
real, calls = cache.preprocess, []
def preprocess(*args, **kwargs):
    calls.append(1)
    {action}
    return real(*args, **kwargs)
cache.preprocess = preprocess
cache.load(find_prepared({data_dir!r}), "train", size=16, channels=3, crop="field_of_view")
"""


def load_elsewhere(manifest, action: str, before: str = ""):
    return python(before + LOAD.format(action=action, data_dir=str(manifest.folder.parent.parent)))


def test_a_killed_process_leaves_no_cache(manifest, release):
    process = load_elsewhere(manifest, "len(calls) > 3 and os.kill(os.getpid(), 9)")
    process.communicate()
    assert process.returncode == -9
    assert not folder_of(manifest).exists() and len(leftovers(manifest.folder)) == 1
    np.testing.assert_array_equal(cache.load(manifest, "train", **OPTIONS).images, expected(release, "train"))
    assert not leftovers(manifest.folder)  # removed by the next process


def test_two_processes_fill_the_same_cache(manifest, release):
    processes = [load_elsewhere(manifest, "time.sleep(0.1)") for _ in range(2)]
    for process in processes:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert not leftovers(manifest.folder)
    np.testing.assert_array_equal(cache.load(manifest, "train", **OPTIONS).images, expected(release, "train"))


def test_a_full_disk_is_a_user_error(manifest):
    """A limit on the size of files makes the same write fail."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    process = load_elsewhere(manifest, "pass", before)
    error = process.communicate()[1].splitlines()[-1]
    assert "UserError: cannot write under" in error and "free some space" in error
    assert not folder_of(manifest).exists() and not leftovers(manifest.folder)


def test_an_unwritable_data_dir_is_refused(release, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write under"):
        prepare(release, tmp_path / "file", tfds=False)


def test_folders_of_running_processes_are_not_removed(tmp_path):
    with atomic.partial_folder(tmp_path) as mine:
        other = tmp_path / ".partial-another-host-17-abcdef12"
        other.mkdir()
        with atomic.partial_folder(tmp_path):
            assert mine.is_dir() and other.is_dir()
        os.utime(other, (0, 0))
        with atomic.partial_folder(tmp_path):
            assert mine.is_dir() and not other.exists()


def test_neither_tensorflow_nor_tfds_is_needed(release, tmp_path):
    """Prepare, cache and read in a process in which importing either fails."""
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
from idrid_jax.data import cache, prepare
from idrid_jax.data.manifest import find_prepared
manifest, _ = prepare.prepare({str(release)!r}, {str(tmp_path)!r}, tfds=False)
print(cache.load(find_prepared({str(tmp_path)!r}), "train", size=8, channels=1, crop="letterbox").images.shape)
assert "jax" not in sys.modules
"""
    out, error = python(code).communicate()
    assert out.strip() == "(7, 8, 8, 1)", error


# --- with the TFDS dataset


@pytest.fixture(scope="module")
def built(release, tmp_path_factory) -> Manifest:
    pytest.importorskip("tensorflow")
    return prepare(release, tmp_path_factory.mktemp("tfds"))[0]


def test_a_cache_filled_from_tfds_has_the_same_pixels(built, manifest):
    from idrid_jax.data.idrid import Builder

    assert str(Builder.VERSION) == TFDS_VERSION
    assert built.tfds and not manifest.tfds and built.fingerprint == manifest.fingerprint
    assert {path.name for path in (built.folder / "idrid").iterdir()} == {"grading", "localization", "segmentation"}
    elsewhere = {
        split: tuple(
            dataclasses.replace(one, source=dataclasses.replace(one.source, path=Path("gone"))) for one in found
        )
        for split, found in built.grading.items()
    }
    a = cache.load(dataclasses.replace(built, grading=elsewhere), "train", **OPTIONS)  # the release is not needed
    b = cache.load(manifest, "train", **OPTIONS)
    np.testing.assert_array_equal(a.images, b.images)
    assert a.ids == b.ids and a.grades.tolist() == b.grades.tolist()


def test_preparing_again_builds_only_missing_configs(built, release):
    data_dir = built.folder.parent.parent
    info = {path: path.stat().st_mtime_ns for path in (built.folder / "idrid").rglob("dataset_info.json")}
    again, text = prepare(release, data_dir)
    assert again == built and "already prepared" in text
    assert info == {path: path.stat().st_mtime_ns for path in info}
    (built.folder / "idrid" / "localization").rename(data_dir / "gone")
    again, text = prepare(release, data_dir)
    assert again == built and "already" not in text
    changed = [path for path in info if path.stat().st_mtime_ns != info[path]]
    assert [path.parent.parent.name for path in changed] == ["localization"]


@pytest.mark.multiprocess  # imports TensorFlow in another process
def test_a_killed_build_is_built_again(release, tmp_path):
    pytest.importorskip("tensorflow")
    code = f"""
import os
from idrid_jax.data import atomic, prepare
publish = atomic.publish
def publish_or_die(folder, target):
    return os.kill(os.getpid(), 9) if "segmentation" in str(target) else publish(folder, target)
atomic.publish = publish_or_die
prepare.prepare({str(release)!r}, {str(tmp_path)!r})
"""
    process = python(code)
    process.communicate()
    assert process.returncode == -9
    with pytest.raises(UserError, match="no release has been prepared"):
        find_prepared(tmp_path)
    manifest, _ = prepare(release, tmp_path)
    assert find_prepared(tmp_path) == manifest and not leftovers(tmp_path)
    assert {path.name for path in (manifest.folder / "idrid").iterdir()} == {"grading", "segmentation", "localization"}


def test_a_damaged_or_missing_tfds_dataset_is_refused(release, tmp_path):
    pytest.importorskip("tensorflow")
    manifest, _ = prepare(release, tmp_path)
    record = next((manifest.folder / "idrid" / "grading").rglob("*train.tfrecord*"))
    os.truncate(record, record.stat().st_size // 2)
    with pytest.raises(UserError, match="a damaged TFDS dataset"):
        cache.load(manifest, "train", **OPTIONS)
    (manifest.folder / "idrid").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="TFDS dataset is gone"):
        cache.load(manifest, "train", **OPTIONS)


# --- the real photographs


@pytest.mark.real_data
def test_real_release(tmp_path):
    if not os.environ.get("IDRID_SAMPLE_DIR"):
        pytest.skip("IDRID_SAMPLE_DIR is not set")
    manifest, text = prepare(os.environ["IDRID_SAMPLE_DIR"], tmp_path, tfds=False)
    excluded = [one for one in manifest.exclusions if one.startswith("B ")]
    assert sum(map(sum, manifest.counts["grading"].values())) == 23 - len(excluded) and "part C" in text
    train = cache.load(manifest, "train", size=64, channels=3, crop="field_of_view")
    assert train.images.shape[1:] == (64, 64, 3)
    middle = train.images[:, 24:40, 24:40].mean(axis=(1, 2, 3))
    assert (middle > 20).all() and train.images[:, :2, :2].mean() < 10  # retina in the middle, black in the corners


# -- Subsets


@pytest.fixture(scope="module")
def memory_mapped(tmp_path_factory):
    """A split of 64 memory-mapped images of 128 x 128 pixels, 3 MiB."""
    path = tmp_path_factory.mktemp("split") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), np.uint8))
    grades = np.arange(64, dtype=np.int32) % 5
    return cache.Split(np.load(path, mmap_mode="r"), grades, grades, tuple(map(str, range(64))), grades == 2)


def test_a_subset_copies_no_image(memory_mapped):
    """The fault was a copy of the whole training split in every process that holds out a validation fold."""
    tracemalloc.start()
    try:
        subset = memory_mapped.subset(np.arange(64) % 8 != 0)
        batch = np.asarray(subset.images[np.arange(8)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.shares_memory(subset.images[0], memory_mapped.images)
    assert batch.nbytes < peak < memory_mapped.images.nbytes / 4


def test_a_subset_reads_like_an_array(memory_mapped):
    mask = np.arange(64) % 8 != 0
    subset = memory_mapped.subset(mask).subset(np.array([5, 0, 55]))
    rows = np.flatnonzero(mask)[[5, 0, 55]]
    images = memory_mapped.images[rows]
    assert len(subset) == len(subset.images) == 3 and subset.images.shape == images.shape
    assert subset.images.nbytes == images.nbytes and subset.images.dtype == np.uint8
    np.testing.assert_array_equal(subset.images, images)
    np.testing.assert_array_equal(list(subset.images), list(images))
    for key in (1, slice(1, None), [2, 0], np.array([True, False, True]), (slice(0, 2), slice(4, 9))):
        np.testing.assert_array_equal(subset.images[key], images[key])
    np.testing.assert_array_equal(subset.grades, memory_mapped.grades[rows])
    np.testing.assert_array_equal(subset.is_left_eye, memory_mapped.is_left_eye[rows])
    assert subset.ids == tuple(map(str, rows)) and subset.left_eye_share == subset.is_left_eye.mean()
