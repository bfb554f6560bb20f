"""Agreement of requested and read grades: measures against their formulas, and planted readings."""

import numpy as np
import pytest

from idrid_jax.evaluation import grading
from idrid_jax.evaluation.graders import metrics

RNG = np.random.default_rng(0)
REQUESTED, TRUTH = np.repeat(np.arange(5), 12), np.repeat(np.arange(5), 6)


def kappa_by_hand(truth, read):
    """1 - observed / expected squared distance, over all pairs of a truth and a reading."""
    return 1 - np.mean((truth - read) ** 2.0) / np.mean((truth[:, None] - read[None]) ** 2.0)


def test_measures_against_their_formulas():
    truth = RNG.integers(5, size=200)
    read = np.where(RNG.random((3, 200)) < 0.5, truth, RNG.integers(5, size=(3, 200)))
    matrix = metrics.confusion(truth, read, 5)
    assert matrix.shape == (3, 5, 5) and (matrix.sum((1, 2)) == 200).all()
    for one, row in zip(matrix, read):
        for i in range(5):
            assert [np.sum((truth == i) & (row == j)) for j in range(5)] == one[i].tolist()
        assert metrics.quadratic_kappa(one) == pytest.approx(kappa_by_hand(truth, row), abs=1e-12)
        each = [np.mean(row[truth == grade] == grade) for grade in range(5)]
        np.testing.assert_allclose(metrics.recall(one), each)
        assert metrics.balanced_accuracy(one) == pytest.approx(np.mean(each))


def test_measures_at_the_edges():
    truth = np.array([0, 0, 4])
    perfect, constant = (metrics.confusion(truth, np.array(read), 5) for read in ([0, 0, 4], [0, 0, 0]))
    assert metrics.quadratic_kappa(perfect) == 1 and metrics.quadratic_kappa(constant) == 0
    assert np.isnan(metrics.recall(perfect)[1]) and metrics.balanced_accuracy(constant) == 0.5
    assert metrics.quadratic_kappa(metrics.confusion(truth[:2], truth[:2], 5)) == 0  # a single grade


def test_perfect_wrong_and_random_readings():
    perfect = grading.measure(REQUESTED, REQUESTED, TRUTH, TRUTH)
    assert perfect["generated"]["kappa"] == perfect["held_out"]["kappa"] == 1 and " reads " in perfect["verdict"]
    assert perfect["generated"]["recall"]["MILD"] == 1 and np.trace(perfect["generated"]["confusion"]) == 60
    wrong = grading.measure(4 - REQUESTED, REQUESTED, TRUTH, TRUTH)
    assert wrong["generated"]["kappa"] == pytest.approx(-1) and "does not read" in wrong["verdict"]
    guess = grading.measure(RNG.integers(5, size=60), REQUESTED, TRUTH, TRUTH)
    low, high = guess["generated"]["interval"]
    assert low < 0 < high and "does not read" in guess["verdict"]
    assert "in held-out photographs 1.00" in grading.table(guess)


def test_too_few_images_are_named():
    few = grading.measure(REQUESTED[:4], REQUESTED[:4], TRUTH[:3], TRUTH[:3])
    assert few["generated"]["missing"].startswith("4 generated images") and "not judged" in few["verdict"]
    assert "4 generated images" in grading.table(few)
