"""The TFDS builder: TFDS's own test case for every config, unchanged bytes, labels and masks as released."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow")  # reading TFRecords needs it; the builder itself does not
tfds = pytest.importorskip("tensorflow_datasets")

import idrid_jax  # noqa: E402
from idrid_jax.data import idrid  # noqa: E402
from idrid_jax.data.release import LESIONS, ReleaseWriter, read_mask, read_release  # noqa: E402
from idrid_jax.errors import UserError  # noqa: E402

DUMMY = Path(idrid.__file__).parent / "dummy_data"


class GradingTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = idrid.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["grading"]
    SPLITS = {"train": 5, "test": 2}


class SegmentationTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = idrid.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["segmentation"]
    SPLITS = {"train": 2, "test": 1}


class LocalizationTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = idrid.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["localization"]
    SPLITS = {"train": 5, "test": 2}


def build(release, config, folder):
    builder = idrid.Builder(release=release, config=config, data_dir=folder)
    builder.download_and_prepare()
    return builder


def examples(builder, split, **options):
    found = tfds.as_numpy(builder.as_dataset(split=split, **options))
    return {example["source_id"].decode(): example for example in found}


def test_bytes_and_grades_are_unchanged(tmp_path):
    release = read_release(DUMMY)
    builder = build(release, "grading", tmp_path)
    for split in ("train", "test"):
        found = examples(builder, split, decoders={"image": tfds.decode.SkipDecoding()})
        wanted = {f"{split}/{record.id}": record for record in release.grading if record.split == split}
        assert found.keys() == wanted.keys()
        for key, record in wanted.items():
            assert found[key]["image"] == record.image.read()
            assert (found[key]["grade"], found[key]["macular_edema_risk"]) == (record.grade, record.edema)
    assert builder.info.features["grade"].names == ["NO_DR", "MILD", "MODERATE", "SEVERE", "PROLIFERATIVE"]
    assert -1 in [record.edema for record in release.grading]  # an unknown risk is stored


def test_masks_and_their_presence(tmp_path):
    release = read_release(DUMMY)
    found = examples(build(release, "segmentation", tmp_path), "train")
    seen = set()
    for record in release.segmentation:
        if record.split != "train":
            continue
        masks = found[f"train/{record.id}"]["masks"]
        for lesion in LESIONS:
            present = lesion in record.masks
            expected = read_mask(record.masks[lesion]) if present else np.zeros((60, 90), bool)
            assert masks[lesion]["present"] == present
            np.testing.assert_array_equal(masks[lesion]["mask"], 255 * expected[..., None].astype(np.uint8))
            seen.add(present)
    assert seen == {True, False}


def test_centers_are_x_y_pixels(tmp_path):
    release = read_release(DUMMY)
    found = examples(build(release, "localization", tmp_path), "test")
    for record in (record for record in release.localization if record.split == "test"):
        np.testing.assert_array_equal(found[f"test/{record.id}"]["optic_disc"], np.float32(record.disc))
        np.testing.assert_array_equal(found[f"test/{record.id}"]["fovea"], np.float32(record.fovea))


def image_bytes(shape=(60, 90, 3), format="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)).save(file, format)
    return file.getvalue()


def user_error(error: BaseException) -> UserError:
    while not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def test_a_mask_of_another_size_is_refused(tmp_path):
    with ReleaseWriter(tmp_path / "release", "made up") as writer:
        writer.add_segmented("train", image_bytes(), {"MA": np.ones((60, 80), bool)})
    with pytest.raises(Exception) as error:
        build(read_release(tmp_path / "release"), "segmentation", tmp_path / "data")
    assert "IDRiD_01_MA.tif" in str(user_error(error.value))


def test_a_config_whose_part_is_absent_is_refused(tmp_path):
    with ReleaseWriter(tmp_path / "release", "made up") as writer:
        writer.add_graded("train", image_bytes(), 3)
    with pytest.raises(Exception) as error:
        build(read_release(tmp_path / "release"), "segmentation", tmp_path / "data")
    assert "'segmentation'" in str(user_error(error.value))


def test_png_is_unchanged_and_tiff_becomes_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    files = {}
    for format, suffix in (("PNG", ".png"), ("TIFF", ".tif")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format)
        files[suffix] = file.getvalue()
    with ReleaseWriter(tmp_path / "release", "made up") as writer:
        writer.add_graded("train", files[".png"], 0)
        writer.add_graded("train", files[".tif"], 1, suffix=".tif")
    builder = build(read_release(tmp_path / "release"), "grading", tmp_path / "data")
    raw = examples(builder, "train", decoders={"image": tfds.decode.SkipDecoding()})
    assert raw["train/IDRiD_001"]["image"] == files[".png"]
    for example in examples(builder, "train").values():
        np.testing.assert_array_equal(example["image"], pixels)


def test_importing_the_builder_imports_no_tensorflow():
    code = "import sys, idrid_jax.data.idrid; assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.multiprocess  # imports TensorFlow in another process
def test_tfds_build_works_from_the_folder(tmp_path):
    """The command in the builder's README for an environment without apache_beam."""
    readme = (DUMMY.parent / "README.md").read_text()
    code = readme.split('python -c "')[1].split('" --manual_dir')[0]
    flags = [f"--manual_dir={DUMMY}", f"--data_dir={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(Path(idrid_jax.__file__).parent.parent), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, cwd=DUMMY.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {path.parent.parent.name for path in tmp_path.rglob("dataset_info.json")}
    assert found == {"grading", "segmentation", "localization"}
