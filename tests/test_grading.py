"""Agreement of requested and read grades: measures against their formulas, and planted images."""

import numpy as np
import pytest

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import grading
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import metrics

RNG = np.random.default_rng(0)
TRAINING, REQUESTED, TRUTH = (np.repeat(np.arange(5), count) for count in (20, 12, 6))
COLOR = FeatureExtractor("color:1", lambda x: x.mean((1, 2)).astype(np.float32), input_size=224)


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


def shown(grades, seed=1):
    """Images whose brightness, with noise, shows the grade."""
    noise = np.random.default_rng(seed).integers(-8, 9, (len(grades), 4, 4, 3))
    return (40 * np.asarray(grades)[:, None, None, None] + 30 + noise).astype(np.uint8)


def measure(generated, requested=REQUESTED, *, training=TRAINING, held_out=TRUTH, held_out_images=None, **options):
    photographs = shown(held_out, 2) if held_out_images is None else held_out_images
    return grading.measure(
        COLOR, shown(training), training, photographs, held_out, generated, requested, **options
    )  # fmt: skip


def test_planted_generators(tmp_path):
    right = measure(shown(REQUESTED, 3), cache_dir=tmp_path)
    generated, held_out = right["generated"], right["held_out"]
    assert generated["qwk"] > 0.9 and held_out["qwk"] > 0.9 and " reads " in right["verdict"]
    assert (generated["images"], held_out["images"]) == (60, 30) and set(generated["recall"]) == set(GRADES)
    assert np.sum(generated["confusion"]) == 60 and np.trace(generated["confusion"]) > 30
    low, high = generated["qwk_interval"]
    assert low <= generated["qwk"] <= high
    assert right["pixels"] == 4 and "color:1" in right["grader"]
    assert len(list(tmp_path.iterdir())) == 4  # both sides of photographs alone are cached
    assert measure(shown(REQUESTED, 3), cache_dir=tmp_path) == right
    wrong = measure(shown(4 - REQUESTED))
    assert wrong["generated"]["qwk"] < -0.9 and "does not read" in wrong["verdict"]
    guess = measure(shown(RNG.permutation(REQUESTED)))
    low, high = guess["generated"]["qwk_interval"]
    assert low < 0 < high and "does not read" in guess["verdict"]


def test_the_table_has_both_kappas_their_recalls_and_says_that_images_are_enlarged():
    result = measure(shown(REQUESTED), held_out=np.repeat([0, 2, 3, 4], 5))
    text = grading.table(result)
    assert "100 training photographs of 4 pixels, enlarged to 224" in text and "color:1" in text
    rows = {line[:9]: line.split() for line in text.splitlines()}
    assert rows["generated"][2] == f"{result['generated']['qwk']:.2f}"
    assert result["held_out"]["recall"]["MILD"] is None and rows["held-out "][-4] == "-"  # a grade that is absent


def test_a_grader_that_does_not_read_photographs_judges_nothing():
    result = measure(shown(REQUESTED), held_out_images=shown(RNG.permutation(TRUTH)))
    assert result["generated"]["qwk"] > 0.9 and result["verdict"].startswith("not judged: the grader does not read")


def test_what_cannot_be_measured_is_named():
    few = measure(shown(REQUESTED[:4]), REQUESTED[:4], held_out=TRUTH[:3])
    assert few["generated"]["missing"].startswith("4 generated images") and "not judged" in few["verdict"]
    assert few["held_out"]["missing"].startswith("3 held-out photographs") and "4 generated" in grading.table(few)
    one = measure(shown(REQUESTED), held_out=np.full(12, 2))
    assert "of one grade" in one["held_out"]["missing"] and " reads " in one["verdict"]
    same = measure(shown(REQUESTED), training=np.full(12, 2))
    assert "of one grade" in same["missing"] and same["missing"] in grading.table(same)
