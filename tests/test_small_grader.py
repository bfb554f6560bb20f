"""The small grader: it learns planted grades, is a function of its seed, and is trained once per set of photographs."""

import jax
import numpy as np
import pytest
from conftest import untrained_graders

from idrid_jax.evaluation import small_grader
from idrid_jax.evaluation.graders import metrics

optimized_compilation = platform_lowering = True  # without either, training takes minutes

BUDGET = small_grader.Budget(steps=60, batch_size=16, learning_rate=3e-3)


def squares(counts, size=16, seed=0, shift=0):
    """Grey squares on black, the brighter the higher the grade: learned in a few dozen updates."""
    rng = np.random.default_rng(seed)
    grades = np.repeat(np.arange(5), counts)
    images = rng.integers(0, 10, (len(grades), size, size, 1))
    images[:, 4:12, 4:12] += (40 + 45 * ((grades + shift) % 5))[:, None, None, None]
    return images.astype(np.uint8), grades.astype(np.int32)


@pytest.fixture(scope="module")
def trained():
    """Graders of two seeds; half of the images have wrong grades and weight 0. -> (parameters, train again)"""
    images, grades = squares([10] * 5)
    wrong, wrong_grades = squares([10] * 5, shift=2)
    both = np.concatenate([images, wrong]), np.concatenate([grades, wrong_grades])
    train = lambda: small_grader.train(*both, np.repeat([1.0, 0.0], 50), seeds=[0, 1], budget=BUDGET)
    return train(), train


def test_it_reads_new_images_and_never_sees_those_of_weight_0(trained):
    params, _ = trained
    new, truth = squares([8] * 5, seed=1)
    read = small_grader.read(params, new)
    assert read.shape == (2, 40, 5) and np.allclose(read.sum(-1), 1, atol=1e-5)
    assert (metrics.quadratic_kappa(metrics.confusion(truth, read.argmax(-1), 5)) > 0.9).all()
    asked = [row[grade] for row, grade in zip(read[0], truth)]
    np.testing.assert_array_equal(small_grader.likelihood(params, new, truth), asked)
    assert small_grader.read(params, new[:0]).shape == (2, 0, 5)


def test_it_is_a_function_of_its_seed(trained):
    params, train = trained
    jax.tree.map(np.testing.assert_array_equal, params, train())
    images, _ = squares([2] * 5)
    read = small_grader.read(params, images)
    assert not np.allclose(read[0], read[1])


def test_class_weights_are_inverse_to_the_sampling_and_0_for_unknown_labels():
    weights = small_grader._class_weights(np.array([0, 0, 0, 1, -1]), np.full(5, 0.2), 3)
    np.testing.assert_allclose(weights * [0.6, 0.2, 0, 0.2], [0.5, 0.5, 0, 0])


def test_large_images_are_downsampled_by_means_over_squares():
    images = np.random.default_rng(0).integers(0, 256, (2, 130, 130, 3), np.uint8)
    small = small_grader.at_most(images, 64)
    assert small.shape == (2, 43, 43, 3) and small.dtype == np.uint8
    np.testing.assert_array_equal(small[1, 2, 3], np.rint(images[1, 6:9, 9:12].mean((0, 1))))
    assert small_grader.at_most(images, 130) is images


def test_augmentation_rotates_about_the_center_and_keeps_black():
    size = 33
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    field = np.hypot(row, column) < 12
    x = np.where(field, 0.2, -1.0)[None, :, :, None].repeat(4, 0).astype(np.float32)
    x[:, 16, 20:26] = 0.8  # a mark
    y = np.asarray(jax.jit(small_grader.augment)(jax.random.key(0), x))
    assert y.shape == x.shape and y.min() >= -1 and y.max() <= 1
    far, within = np.hypot(row, column) > 14, np.hypot(row, column) < 3
    assert (y[:, far] < -0.999).all() and np.ptp(y[:, within], axis=1).max() < 0.05
    assert abs(y[:, within].mean() - 0.2) < 0.15
    at = [np.unravel_index(image[..., 0].argmax(), (size, size)) for image in y]
    assert len(set(at)) > 2  # the mark is in several places
    assert all(4 <= np.hypot(i - 16, j - 16) <= 11 for i, j in at)  # as far from the center as it was


def test_it_is_trained_once_per_set_of_photographs(tmp_path, monkeypatch):
    images, grades = squares([4] * 5)
    lines = []
    monkeypatch.setattr(small_grader, "train", untrained_graders)
    cached = lambda images, grades: small_grader.cached_grader(images, grades, tmp_path, log=lines.append)
    first, params = cached(images, grades)
    again, _ = cached(images, grades)
    np.testing.assert_array_equal(first.extract(images), again.extract(images))
    assert first.name == again.name and first.extract(images[:3]).shape == (3, 32) and len(lines) == 1
    (path,) = tmp_path.glob(f"*/{small_grader.FILE}")
    other, _ = cached(images[::-1], grades[::-1])
    assert other.name != first.name and len(lines) == 2
    path.write_bytes(path.read_bytes()[:100])  # a truncated file is trained again
    _, params_again = cached(images, grades)
    assert len(lines) == 3
    jax.tree.map(np.testing.assert_array_equal, params, params_again)


def test_budget_grows_with_the_photographs():
    assert [small_grader.default_budget(n).steps for n in (10, 120, 400)] == [100, 240, 400]
