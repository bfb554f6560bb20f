"""The grader and what synthetic images are worth to it: measures against formulas, training on planted cases."""

import dataclasses

import jax
import numpy as np
import pytest

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import grader, grading, usefulness


def kappa_by_hand(truth, read, grades):
    """1 - observed / expected squared distance, over all pairs of a truth and a reading."""
    observed = np.mean((truth - read) ** 2.0)
    expected = np.mean((truth[:, None] - read[None]) ** 2.0)
    return 1 - observed / expected


def test_measures_against_their_formulas():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=200)
    read = np.where(rng.random((3, 200)) < 0.5, truth, rng.integers(5, size=(3, 200)))
    matrix = grading.confusion(truth, read, 5)
    assert matrix.shape == (3, 5, 5) and (matrix.sum((1, 2)) == 200).all()
    for one, row in zip(matrix, read):
        for i in range(5):
            assert [np.sum((truth == i) & (row == j)) for j in range(5)] == one[i].tolist()
        assert grading.quadratic_kappa(one) == pytest.approx(kappa_by_hand(truth, row, 5), abs=1e-12)
        each = [np.mean(row[truth == grade] == grade) for grade in range(5)]
        np.testing.assert_allclose(grading.recall(one), each)
        assert grading.balanced_accuracy(one) == pytest.approx(np.mean(each))


def test_measures_at_the_edges():
    truth = np.array([0, 0, 4])
    perfect, constant = (grading.confusion(truth, np.array(read), 5) for read in ([0, 0, 4], [0, 0, 0]))
    assert grading.quadratic_kappa(perfect) == 1 and grading.quadratic_kappa(constant) == 0
    assert np.isnan(grading.recall(perfect)[1]) and grading.balanced_accuracy(constant) == 0.5
    assert grading.quadratic_kappa(grading.confusion(truth[:2], truth[:2], 5)) == 0  # one grade alone


def discs(counts, size=16, seed=0, shift=0):
    """Grey squares on black, the brighter the higher the grade: what a grader learns in some dozens of updates."""
    rng = np.random.default_rng(seed)
    grades = np.repeat(np.arange(5), counts)
    images = rng.integers(0, 10, (len(grades), size, size, 1))
    images[:, 4:12, 4:12] += (40 + 45 * ((grades + shift) % 5))[:, None, None, None]
    return images.astype(np.uint8), grades.astype(np.int32)


BUDGET = grader.Budget(steps=60, batch_size=16, learning_rate=3e-3)


def test_it_learns_to_read_grades_and_is_a_function_of_its_seed():
    images, grades = discs([20] * 5)
    params = grader.train(images, grades, np.ones(100), seeds=[0, 1], budget=BUDGET)
    new, truth = discs([8] * 5, seed=1)
    read = grader.read(params, new)
    assert read.shape == (2, 40, 5) and np.allclose(read.sum(-1), 1, atol=1e-5)
    assert (grading.quadratic_kappa(grading.confusion(truth, read.argmax(-1), 5)) > 0.9).all()
    again = grader.train(images, grades, np.ones(100), seeds=[0, 1], budget=BUDGET)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.allclose(read[0], read[1])
    assert grader.read(params, new[:0]).shape == (2, 0, 5)


def test_oedema_is_learned_where_it_is_known():
    """The risk is the brightness around; half of the images do not tell theirs."""
    images, grades = discs([40] * 5)
    risk = np.arange(200) % 3
    around = np.ones((1, 16, 16, 1), bool)
    around[:, 4:12, 4:12] = False
    images = np.where(around, images + 80 * risk[:, None, None, None], images).astype(np.uint8)
    told = np.where(np.arange(200) % 2, risk, -1)
    budget = dataclasses.replace(BUDGET, steps=240)
    params = grader.train(images, grades, np.ones(200), seeds=[0], edema=told, budget=budget)
    assert (grader.read_edema(params, images)[0].argmax(-1) == risk).mean() > 0.9
    assert (grader.read(params, images)[0].argmax(-1) == grades).mean() > 0.8
    weights = grader._weights(np.array([0, 0, 0, 1, -1]), np.full(5, 0.2), 3)
    np.testing.assert_allclose(weights * [0.6, 0.2, 0, 0.2], [0.5, 0.5, 0, 0])


def test_large_images_are_averaged_down():
    images = np.random.default_rng(0).integers(0, 256, (2, 130, 130, 3), np.uint8)
    small = grader.shrunk(images, 64)
    assert small.shape == (2, 43, 43, 3)
    np.testing.assert_array_equal(small[1, 2, 3], np.rint(images[1, 6:9, 9:12].mean((0, 1))))
    assert grader.shrunk(images, 130) is images


def test_images_of_odds_0_are_never_seen():
    images, grades = discs([20] * 5)
    wrong, lies = discs([20] * 5, shift=2)
    odds = np.repeat([1.0, 0.0], 100)
    both = np.concatenate([images, wrong]), np.concatenate([grades, lies])
    params = grader.train(*both, odds, seeds=[0], budget=BUDGET)
    assert grading.quadratic_kappa(grading.confusion(grades, grader.read(params, images)[0].argmax(1), 5)) > 0.9


def test_augmentation_keeps_what_it_must():
    """A disc about the centre stays where it is; black stays black; the rest moves."""
    size = 33
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    field = np.hypot(row, column) < 12
    x = np.where(field, 0.2, -1.0)[None, :, :, None].repeat(4, 0).astype(np.float32)
    x[:, 16, 20:26] = 0.8  # a mark
    y = np.asarray(jax.jit(grader.augment)(jax.random.key(0), x))
    assert y.shape == x.shape and y.min() >= -1 and y.max() <= 1
    far, within = np.hypot(row, column) > 14, np.hypot(row, column) < 3
    assert (y[:, far] < -0.999).all() and np.ptp(y[:, within], axis=1).max() < 0.05
    assert abs(y[:, within].mean() - 0.2) < 0.15
    at = [np.unravel_index(image[..., 0].argmax(), (size, size)) for image in y]
    assert len(set(at)) > 2  # the mark is turned to several places
    assert all(4 <= np.hypot(i - 16, j - 16) <= 11 for i, j in at)  # as far from the centre as it was


COUNTS = [12, 4, 10, 8, 6]


def test_arms_draw_what_they_say():
    training, grades = discs(COUNTS)
    synthetic, labels = discs([12] * 5, seed=3)
    likely = np.linspace(0, 1, 60)
    arms = usefulness._arms(grades, labels, likely)
    assert arms.keys() == usefulness.ARMS.keys() and "filtered" not in usefulness._arms(grades, labels)
    both = np.concatenate([grades, labels])
    share = {name: np.bincount(both, weights=odds, minlength=5) for name, odds in arms.items()}
    assert share["real"].tolist() == COUNTS and share["balanced"].tolist() == share["synthetic"].tolist() == [12] * 5
    assert share["filtered"].tolist() == [12] * 5
    np.testing.assert_allclose(share["oversampled"], 1)
    real = len(grades)
    assert not arms["oversampled"][real:].any() and not arms["synthetic"][:real].any()
    assert arms["balanced"][:real].all()
    of_mild = np.flatnonzero(both[real:] == 1)  # 8 of them are wanted: the first as drawn, the last as likely
    np.testing.assert_array_equal(np.flatnonzero(arms["balanced"][real:][of_mild]), range(8))
    np.testing.assert_array_equal(np.flatnonzero(arms["filtered"][real:][of_mild]), range(4, 12))


def test_planted_graders_get_the_verdicts_they_earn():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=120)

    def good(odds, seed):
        return np.where(np.random.default_rng(seed).random((5, 120)) < odds, truth, rng.integers(5, size=(5, 120)))

    chance = rng.integers(5, size=(5, 120))
    verdict = lambda real, balanced: usefulness.compare(truth, {"real": real, "balanced": balanced})["verdict"]
    assert verdict(good(0.4, 1), good(0.9, 2)).startswith("a gain: kappa +0")
    assert verdict(good(0.9, 1), good(0.4, 2)).startswith("a loss: kappa -0")
    same = good(0.6, 1)
    assert verdict(same, same).startswith("no measurable gain: kappa +0.000 (+0.000 to +0.000)")
    assert verdict(good(0.6, 1), good(0.6, 2)).startswith("no measurable gain")
    assert verdict(chance, good(0.9, 1)).startswith("not measurable")
    filtered = usefulness.compare(truth, {"real": good(0.4, 1), "balanced": good(0.4, 2), "filtered": good(0.9, 3)})
    told = filtered["verdict"].split("; ")
    assert told[0].startswith("no measurable gain") and told[1].startswith("a gain") and "likeliest" in told[1]
    assert len(told) == 2
    assert verdict(good(0.4, 1)[:2], good(0.9, 2)[:2]).endswith("; 2 seeds are few to tell by, take 5")


def test_intervals_cover_and_are_paired():
    """95 % intervals of a known kappa hold it some 95 times of 100; a constant difference has no width."""
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = rng.integers(5, size=100)
        read = np.where(rng.random((3, 100)) < 0.5, truth, rng.integers(5, size=(3, 100)))
        low, high = usefulness.compare(truth, {"real": read, "balanced": read}, resamples=300)["arms"]["real"]["kappa"][
            "interval"
        ]
        inside += low <= 0.5 <= high
    assert 50 <= inside <= 60
    other = np.where(np.arange(100) % 4 == 0, truth, read)
    two = usefulness.compare(truth, {"real": read, "balanced": other}, resamples=300)
    wide = [np.ptp(two["arms"][name]["kappa"]["interval"]) for name in ("real", "balanced")]
    assert np.ptp(two["differences"]["balanced"]["kappa"]["interval"]) < np.hypot(*wide)  # less than unpaired


def test_the_whole_measure_on_planted_synthetic_images():
    """Synthetic images whose grades are lies: a grader of them alone reads worse than one of real ones."""
    training, grades = discs(COUNTS)
    held_out, truth = discs([6] * 5, seed=1)
    synthetic, labels = discs([12] * 5, seed=2)
    told = []
    result = usefulness.measure(
        training, grades, held_out, truth, synthetic, np.roll(np.repeat(np.arange(5), 12), 12).astype(np.int32),
        edema=(grades // 2, truth // 2), seeds=2, budget=BUDGET, tell=told.append,
    )  # fmt: skip
    assert len(told) == 4 and result["seeds"] == 2
    edema = result["edema"]["arms"]  # nobody knows the risk in synthetic images alone
    assert edema.keys() == {"real", "oversampled", "balanced"} and edema["real"]["kappa"]["mean"] > 0.6
    kappa = {name: arm["kappa"]["mean"] for name, arm in result["arms"].items()}
    assert kappa["real"] > 0.8 and kappa["synthetic"] < 0.5
    assert result["differences"]["synthetic"]["kappa"]["interval"][1] < 0
    assert np.sum(result["arms"]["real"]["confusion"]) == 60
    shown = usefulness.table(result)
    assert all(usefulness.ARMS[arm] in shown for arm in result["arms"]) and result["verdict"] in shown
    assert f"Oedema: {result['edema']['verdict']}." in shown


@pytest.mark.parametrize(
    "held, drawn, says",
    [
        ([0] * 5, [12] * 5, "0 held-out photographs"),
        ([3, 0, 0, 0, 0], [12] * 5, "3 held-out photographs of one grade"),
        ([3] * 5, [12, 12, 11, 12, 12], "11 synthetic images of MODERATE, and 12 are needed"),
    ],
)
def test_what_is_missing_is_said(held, drawn, says):
    result = usefulness.measure(*discs(COUNTS), *discs(held), *discs(drawn))
    assert says in result["missing"] and says in usefulness.table(result)
    assert usefulness.wanted(discs(COUNTS)[1]).tolist() == [12] * len(GRADES)
