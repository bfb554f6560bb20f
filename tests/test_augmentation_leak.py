"""Planted leaks are named, and halves of real photographs are not a leak; on phantoms."""

import functools
import json

import numpy as np
import pytest
from scipy import ndimage, stats

from idrid_jax.data import phantom
from idrid_jax.evaluation import augmentation_leak

SIZE, COUNT = 64, 60


@functools.cache
def photographs():
    """[120, 64, 64, 3]: the square about the field of view's centre, with the field's edge in it."""
    made = [phantom.make_photograph(np.random.default_rng([5, i]), i % 5, 80, 120).image for i in range(2 * COUNT)]
    left = round(phantom.CENTER * 120 - 40)
    whole = np.stack([image[:, left : left + 80] for image in made])
    small = ndimage.zoom(whole.astype(float), (1, SIZE / 80, SIZE / 80, 1), order=1)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def halves():
    return photographs()[:COUNT], photographs()[COUNT:]


def rotated(images, degrees):
    rng = np.random.default_rng(0)
    turn = lambda image: ndimage.rotate(image, rng.choice([-1, 1]) * degrees, reshape=False, order=1)
    return np.stack([turn(image) for image in images])


def test_statistics_of_a_planted_disc():
    """A grey disc on black with a bright spot, by hand."""
    size = 80
    y, x = np.mgrid[:size, :size]
    image = np.zeros((size, size, 3))
    image[np.hypot(y - 43.5, x - 35.5) < 24] = 100
    image[np.hypot(y - 43.5 + 12, x - 35.5 + 12) < 4] = 250
    found = {name: value[0] for name, value in augmentation_leak.statistics(image.astype(np.uint8)[None]).items()}
    assert found["field_row"] == pytest.approx(4 / size, abs=1e-3)
    assert found["field_column"] == pytest.approx(-4 / size, abs=1e-3)
    assert found["field_radius"] == pytest.approx(24 / size, abs=2e-3)
    # the spot is 8 above the middle and 16 left of it
    assert found["disc_angle"] == pytest.approx(np.rad2deg(np.arctan(8 / 16)), abs=4)
    inside = np.hypot(y - 43.5, x - 35.5) < 24
    assert found["brightness"] == pytest.approx(image[inside].mean() / 255)
    assert found["contrast"] == pytest.approx(image[inside].std() / image[inside].mean())
    assert found["saturation"] == 0


def test_mirroring_changes_only_the_column():
    one, other = (
        augmentation_leak.statistics(photographs()[:20]),
        augmentation_leak.statistics(photographs()[:20, :, ::-1]),
    )
    for name in augmentation_leak.CAPTIONS.keys() - {"disc_angle"}:
        np.testing.assert_allclose(other[name], -one[name] if name == "field_column" else one[name], atol=1e-9)
    assert np.median(np.abs(other["disc_angle"] - one["disc_angle"])) < 1e-6


def test_grey_and_black_images_have_finite_statistics():
    for images in (np.zeros((3, 32, 32, 3), np.uint8), photographs()[:3, ..., :1], np.full((2, 32, 32, 1), 255)):
        assert all(
            np.isfinite(value).all() and len(value) == len(images)
            for value in augmentation_leak.statistics(images).values()
        )


def test_halves_of_the_photographs_are_not_a_leak():
    """Five times; false alarms are as rare as `LEVEL`."""
    images = photographs()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(images))
        found = augmentation_leak.measure(images[order[:COUNT]], images[order[COUNT:]], seed=seed)
        assert found["leaks"] == [] and found["verdict"] == "no sign that augmentation leaked"
    assert {"generated", "real", "distance", "p"} == found["statistics"]["contrast"].keys()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (lambda x: rotated(x, 40), "disc_angle"),
        (lambda x: np.roll(x, 5, axis=1) * (np.arange(SIZE) >= 5).astype(np.uint8)[:, None, None], "field_row"),
        (lambda x: np.pad(x, ((0, 0), (0, 0), (6, 0), (0, 0)))[:, :, :SIZE], "field_column"),
        (lambda x: (x * 0.6).astype(np.uint8), "brightness"),
        (lambda x: (x // 3 + x.mean(-1, keepdims=True) * 2 / 3).astype(np.uint8), "saturation"),
    ],
    ids=["rotated", "shifted down", "shifted right", "darkened", "pale"],
)
def test_planted_changes_are_named(plant, named):
    generated, real = halves()
    found = augmentation_leak.measure(plant(generated), real)
    assert named in found["leaks"] and found["verdict"].startswith("augmentation may have leaked")
    assert augmentation_leak.CAPTIONS[named] in found[
        "verdict"
    ] and f"{augmentation_leak.CAPTIONS[named]:<36}" in augmentation_leak.table(found)
    of = found["statistics"][named]
    assert of["distance"] > augmentation_leak.MIN_DISTANCE and of["p"] < augmentation_leak.LEVEL


def test_the_share_separates_a_leak_from_another_difference():
    """A third of the images rotated, next to rotated photographs; dark ones, which rotation does not explain."""
    generated, real = halves()
    augmented = rotated(real, 40)
    third = np.concatenate([rotated(generated[:20], 40), generated[20:]])
    found = augmentation_leak.measure(third, real, augmented)
    assert found["statistics"]["disc_angle"]["share"] == pytest.approx(1 / 3, abs=0.2)
    dark = augmentation_leak.measure((generated * 0.6).astype(np.uint8), real, augmented)
    assert "brightness" not in dark["leaks"]
    assert "not as augmentation would: " in dark["verdict"] and "brightness" in dark["verdict"]
    assert augmentation_leak.measure(augmented, real, augmented)["statistics"]["disc_angle"]["share"] == pytest.approx(
        1
    )


def test_distance_is_wasserstein_and_p_is_of_permutations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 30), rng.normal(0.2, 1.5, 40)
    assert augmentation_leak.permutation_test(a, b, rng)[0] == pytest.approx(stats.wasserstein_distance(a, b))
    assert augmentation_leak.permutation_test(a + 5, b, rng)[1] == pytest.approx(
        1 / (augmentation_leak.PERMUTATIONS + 1)
    )
    null = [augmentation_leak.permutation_test(rng.normal(size=20), rng.normal(size=20), rng)[1] for _ in range(60)]
    assert 0.35 < np.mean(null) < 0.65 and np.mean(np.array(null) < 0.1) < 0.2
