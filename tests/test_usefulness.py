"""What synthetic images are worth to a grader: arms, verdicts and intervals on planted cases, and one real training."""

import numpy as np
import pytest

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import small_grader, usefulness

optimized_compilation = platform_lowering = True  # without either, training takes minutes

BUDGET = small_grader.Budget(steps=60, batch_size=16, learning_rate=3e-3)  # as in test_small_grader: one program

COUNTS = [12, 4, 10, 8, 6]


def squares(counts, seed=0):
    """Grey squares on black, the brighter the higher the grade: learned in a few dozen updates."""
    rng = np.random.default_rng(seed)
    grades = np.repeat(np.arange(5), counts)
    images = rng.integers(0, 10, (len(grades), 16, 16, 1))
    images[:, 4:12, 4:12] += (40 + 45 * grades)[:, None, None, None]
    return images.astype(np.uint8), grades.astype(np.int32)


def test_arms_sample_the_images_they_name():
    training, grades = squares(COUNTS)
    synthetic, labels = squares([12] * 5, seed=3)
    likely = np.linspace(0, 1, 60)
    arms = usefulness.sampling_weights(grades, labels, likely)
    assert arms.keys() == usefulness.ARMS.keys() and "filtered" not in usefulness.sampling_weights(grades, labels)
    both = np.concatenate([grades, labels])
    share = {name: np.bincount(both, weights=odds, minlength=5) for name, odds in arms.items()}
    assert share["real"].tolist() == COUNTS and share["balanced"].tolist() == share["synthetic"].tolist() == [12] * 5
    assert share["filtered"].tolist() == [12] * 5
    np.testing.assert_allclose(share["oversampled"], 1)
    real = len(grades)
    assert not arms["oversampled"][real:].any() and not arms["synthetic"][:real].any()
    assert arms["balanced"][:real].all()
    of_mild = np.flatnonzero(both[real:] == 1)  # 8 of them are wanted: the first in order, the last by likelihood
    np.testing.assert_array_equal(np.flatnonzero(arms["balanced"][real:][of_mild]), range(8))
    np.testing.assert_array_equal(np.flatnonzero(arms["filtered"][real:][of_mild]), range(4, 12))


def test_verdicts_of_planted_graders():
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
    parts = filtered["verdict"].split("; ")
    assert parts[0].startswith("no measurable gain") and parts[1].startswith("a gain") and "likeliest" in parts[1]
    assert len(parts) == 2
    assert verdict(good(0.4, 1)[:2], good(0.9, 2)[:2]).endswith("; 2 seeds are too few for a conclusion, choose 5")


def test_intervals_cover_and_are_paired():
    """95 % intervals of a known kappa hold it some 95 times of 100; a constant difference has no width."""
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.integers(5, size=100)
        read = np.where(rng.random((3, 100)) < 0.5, truth, rng.integers(5, size=(3, 100)))
        low, high = usefulness.compare(truth, {"real": read, "balanced": read}, resamples=300)["arms"]["real"]["kappa"][
            "interval"
        ]
        inside += low <= 0.5 <= high
    assert 33 <= inside <= 40
    other = np.where(np.arange(100) % 4 == 0, truth, read)
    two = usefulness.compare(truth, {"real": read, "balanced": other}, resamples=300)
    wide = [np.ptp(two["arms"][name]["kappa"]["interval"]) for name in ("real", "balanced")]
    assert np.ptp(two["differences"]["balanced"]["kappa"]["interval"]) < np.hypot(*wide)  # less than unpaired


def measure(**options):
    """Of synthetic images with wrong grades, in every arm."""
    training, grades = squares(COUNTS)
    held_out, truth = squares([6] * 5, seed=1)
    synthetic, labels = squares([12] * 5, seed=2)
    wrong = np.roll(labels, 12)
    if options.pop("edema", False):
        options["edema"] = grades // 2, truth // 2
    return usefulness.measure(training, grades, held_out, truth, synthetic, wrong, seeds=2, budget=BUDGET, **options)


def test_a_grader_of_wrong_grades_reads_worse():
    lines = []
    result = measure(log=lines.append)
    assert len(lines) == 4 and result["seeds"] == 2
    kappa = {name: arm["kappa"]["mean"] for name, arm in result["arms"].items()}
    assert kappa["real"] > 0.8 and kappa["synthetic"] < 0.5
    assert result["differences"]["synthetic"]["kappa"]["interval"][1] < 0
    assert np.sum(result["arms"]["real"]["confusion"]) == 60
    shown = usefulness.table(result)
    assert all(usefulness.ARMS[arm] in shown for arm in result["arms"]) and result["verdict"] in shown


@pytest.mark.slow  # compiles the training of graders with two outputs
def test_edema_risks_are_learned_in_the_arms_that_know_them():
    result = measure(edema=True)
    edema = result["edema"]["arms"]  # unknown in the arm of synthetic images only
    assert edema.keys() == {"real", "oversampled", "balanced"} and edema["real"]["kappa"]["mean"] > 0.6
    assert f"Edema: {result['edema']['verdict']}." in usefulness.table(result)


@pytest.mark.parametrize(
    "held, synthetic, reason",
    [
        ([0] * 5, [12] * 5, "0 held-out photographs"),
        ([3, 0, 0, 0, 0], [12] * 5, "3 held-out photographs, of at most one grade"),
        ([3] * 5, [12, 12, 11, 12, 12], "11 synthetic images of MODERATE, 12 are needed"),
    ],
)
def test_a_reason_replaces_the_result(held, synthetic, reason):
    result = usefulness.measure(*squares(COUNTS), *squares(held), *squares(synthetic))
    assert reason in result["missing"] and reason in usefulness.table(result)
    assert usefulness.num_synthetic(squares(COUNTS)[1]).tolist() == [12] * len(GRADES)
