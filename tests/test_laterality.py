"""Laterality of phantom eyes, whose disc is known, and of real ones with a mask of the disc or its centre."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from idrid_jax.data import laterality
from idrid_jax.data.masks import read_mask
from idrid_jax.data.phantom import make_photograph
from idrid_jax.data.preprocess import centered_square, decode_image, field_of_view, preprocess
from idrid_jax.data.release import read_release

HEIGHT, WIDTH = 178, 268


@pytest.fixture(scope="module")
def phantoms():
    """40 photographs of all grades, and whether the disc lies left of the middle of the field of view."""
    phantoms = [make_photograph(np.random.default_rng([7, i]), i % 5, HEIGHT, WIDTH) for i in range(40)]
    middles = [np.mean(field_of_view(phantom.image)[::2]) for phantom in phantoms]
    return [phantom.image for phantom in phantoms], np.array([p.disc[0] < x for p, x in zip(phantoms, middles)])


def small(images, size, channels, crop="field_of_view"):
    return np.stack([preprocess(png(image), "x", size=size, channels=channels, crop=crop) for image in images])


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "size, channels, crop", [(28, 1, "letterbox"), (64, 3, "field_of_view"), (128, 3, "letterbox")]
)
def test_phantom_eyes(phantoms, size, channels, crop):
    images, left = phantoms
    found = laterality.is_left_eye(small(images, size, channels, crop))
    assert found.shape == (40,) and found.dtype == bool and 10 <= left.sum() <= 30
    assert (found == left).mean() >= 0.95


def test_mirroring_swaps_the_side(phantoms):
    images = small(phantoms[0], 64, 3)
    left = laterality.is_left_eye(images)
    canonical = laterality.canonicalize_laterality(images, left)
    assert not laterality.is_left_eye(canonical).any()
    np.testing.assert_array_equal(canonical[~left], images[~left])
    np.testing.assert_allclose(laterality.disc_side(images[:, :, ::-1]), -laterality.disc_side(images), atol=1e-4)


def test_each_photograph_is_scored_alone(phantoms):
    images = small(phantoms[0], 64, 3)
    np.testing.assert_array_equal(laterality.disc_side(images)[5:9], laterality.disc_side(images[5:9]))
    assert laterality.is_left_eye(images[:0]).shape == (0,)


def test_uniform_images_score_0():
    nothing = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 255)])
    assert np.isfinite(laterality.disc_side(nothing)).all() and np.abs(laterality.disc_side(nothing)).max() < 1e-3


def in_square(record, x):
    """A column of a photograph as a share of the square within its field of view."""
    left, _, right, _ = centered_square(field_of_view(decode_image(record.image.read(), str(record.image))))
    return (x - left) / (right - left)


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["IDRID_DIR", "IDRID_SAMPLE_DIR"])
def test_real_photographs(folder):
    if folder not in os.environ:
        pytest.skip(f"{folder} is not set")
    release = read_release(os.environ[folder])
    columns = [(record, np.nonzero(read_mask(record.masks["OD"]))[1].mean()) for record in release.segmentation]
    columns += [(record, record.disc[0]) for record in release.localization]
    left = np.array([in_square(*one) < 0.5 for one in columns])
    data = [record.image.read() for record, _ in columns]
    for size, channels, crop in (
        (128, 3, "field_of_view"), (64, 3, "field_of_view"), (28, 3, "field_of_view"), (28, 1, "letterbox")
    ):  # fmt: skip
        images = np.stack([preprocess(one, "x", size=size, channels=channels, crop=crop) for one in data])
        assert (laterality.is_left_eye(images) == left).mean() >= 0.97, (size, channels, crop)
