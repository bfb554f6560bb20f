"""What synthetic images are worth to a grader: arms, filter, verdicts and intervals on planted cases, combined runs."""

import json

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import usefulness
from idrid_jax.evaluation import usefulness_comparison as comparison
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders.augmentation import augmented
from idrid_jax.evaluation.graders.classifiers import ORDINAL_C, OrdinalRegression

COUNTS = [12, 4, 10, 8, 6]
WANTED = 24  # synthetic images of each grade
ALL_ARMS = tuple(comparison.ARMS)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 400)


def grid(images):
    """The mean of each cell of a 4 x 4 grid, repeated: the fixed regularization is meant for a thousand features."""
    cells = images.reshape(len(images), 4, images.shape[1] // 4, 4, images.shape[2] // 4, -1)
    return np.tile(cells.mean((2, 4, 5)).reshape(len(images), 16), 20).astype(np.float32)


EXTRACTOR = FeatureExtractor("grid", grid)


def squares(counts, seed=0, *, misleading=False):
    """Grey squares on black, the brighter the higher the grade. `misleading`: a corner shows the grade much better; in
    others it shows anything."""
    rng = np.random.default_rng(seed)
    grades = np.repeat(np.arange(5), counts)
    images = rng.integers(0, 10, (len(grades), 16, 16, 1))
    center = 60 + 30 * grades + rng.normal(0, 45 if misleading else 25, len(grades))
    corner = 40 * (grades if misleading else rng.integers(5, size=len(grades)))
    images[:, 4:12, 4:12] += np.clip(center, 0, 240).astype(int)[:, None, None, None]
    images[:, :4, :4] += corner[:, None, None, None]
    return images.astype(np.uint8), grades.astype(np.int32)


# --- arms


def test_arms_choose_the_images_they_name():
    grades, labels = squares(COUNTS)[1], np.repeat(np.arange(5), WANTED)
    likely = np.arange(len(labels)) % 2 == 0
    chosen = {arm: usefulness.choose_synthetic(arm, grades, labels, likely, 3) for arm in ALL_ARMS}
    counts = {arm: np.bincount(labels[places], minlength=5).tolist() for arm, places in chosen.items()}
    assert not any(len(chosen[arm]) for arm in ("real", "real_balanced", "real_half"))
    for suffix in ("", "_filtered"):
        assert np.add(counts[f"synthetic_balanced{suffix}"], COUNTS).tolist() == [12] * 5
        assert np.add(counts[f"synthetic_twice{suffix}"], COUNTS).tolist() == [24] * 5
        assert counts[f"synthetic_only{suffix}"] == [12] * 5
        assert set(chosen[f"synthetic_balanced{suffix}"]) <= set(chosen[f"synthetic_twice{suffix}"])
    for arm, places in chosen.items():
        assert not arm.endswith("_filtered") or likely[places].all()
        repeats = np.bincount(places, minlength=len(labels)).max() if len(places) else 0
        assert repeats <= (2 if arm == "synthetic_twice_filtered" else 1)  # 12 likely images of each grade, 20 wanted
    other = usefulness.choose_synthetic("synthetic_only", grades, labels, likely, 4)
    assert set(other) != set(chosen["synthetic_only"])
    assert usefulness.num_synthetic(grades).tolist() == [WANTED] * len(GRADES)


def test_the_filter_keeps_the_likeliest_of_each_grade():
    labels = np.array([0, 1, 0, 1, 0, 1, 4])
    kept = usefulness.likeliest(np.array([0.1, 0.9, 0.3, 0.2, 0.2, 0.8, 0.0]), labels, 0.6)
    assert kept.tolist() == [False, True, True, False, True, True, True]
    assert usefulness.likeliest(np.zeros(7), labels, 1.0).all()


def test_weights_of_the_arms():
    """All arms have the same total; grades have the same share, but images do in "real"; photographs are all there."""
    rng = np.random.default_rng(0)
    grades, labels = squares(COUNTS)[1], np.repeat(np.arange(5), WANTED)
    photographs = np.broadcast_to(np.arange(len(grades))[:, None] + 1.0, (4, len(grades), 2)).copy()
    photographs[:, :, 1] = np.arange(4)[:, None]  # the variant
    sets = usefulness._Sets(photographs, grades, -rng.random((len(labels), 2)) - 1, labels, labels >= 0)
    for arm in ALL_ARMS:
        features, rows, weights = usefulness._training_set(sets, arm, seed=1)
        assert weights.sum() == pytest.approx(2 * len(grades))
        share = np.bincount(rows, weights) / weights.sum()
        np.testing.assert_allclose(share, np.divide(COUNTS, sum(COUNTS)) if arm == "real" else 0.2)
        seen, times = np.unique(features[features[:, 0] > 0, 0], return_counts=True)
        expected = 0 if "only" in arm else 20 if arm == "real_half" else len(grades)
        assert len(seen) == expected and (times == 3).all()
        variants = features[features[:, 0] > 0, 1]
        assert (variants == 0).sum() == (variants == 1).sum() == (variants > 1).sum() == expected
    half = usefulness._half_of_each_grade(grades, 1)
    assert np.bincount(grades[half]).tolist() == [6, 2, 5, 4, 3] and len(set(half)) == 20
    assert set(half) != set(usefulness._half_of_each_grade(grades, 2))


def test_a_fit_is_ordinal_regression_on_standardized_features():
    rng = np.random.default_rng(0)
    grades = np.repeat([0, 2, 3, 4], 10)
    features = (rng.normal(0, 3, (40, 8)) + grades[:, None]).astype(np.float32)
    features[:, 7] = 1  # constant, as some of EfficientNet's are
    found = usefulness.fit_grader(features, grades, np.ones(40)).probabilities(features[None], len(GRADES))
    expected = make_pipeline(StandardScaler(), OrdinalRegression(ORDINAL_C)).fit(features, grades)
    np.testing.assert_allclose(found[:, [0, 2, 3, 4]], expected.predict_proba(features), atol=2e-3)
    assert not found[:, 1].any()


# --- comparison


def readers(truth, odds, seed=0, seeds=5):
    """Readings of which a share of about `odds` is right."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((seeds, len(truth))) < odds, truth, rng.integers(5, size=(seeds, len(truth))))


def compare(truth, real, added):
    return comparison.compare(truth, {"real": real, "real_balanced": real, "synthetic_balanced": added})


def test_verdicts_of_planted_graders():
    truth = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [36, 8, 36, 20, 20]))
    good, bad, chance = (readers(truth, odds, seed) for seed, odds in enumerate((0.9, 0.4, 0.0)))
    gain, loss = compare(truth, bad, good), compare(truth, good, bad)
    assert gain["verdict"].startswith("a gain: kappa +0") and gain["by_grade"]["NO_DR"].startswith("a gain: recall +0")
    assert loss["verdict"].startswith("a loss: kappa -0") and loss["by_grade"]["NO_DR"].startswith("a loss: recall -0")
    assert gain["by_grade"]["MILD"] == "not measurable: 8 held-out photographs, 10 are needed"
    same = compare(truth, good, good)["verdict"]
    assert same.startswith("no measurable gain: kappa +0.000 (+0.000 to +0.000)") and "best of" not in same
    assert compare(truth, readers(truth, 0.6, 3), readers(truth, 0.6, 4))["verdict"].startswith("no measurable gain")
    assert compare(truth, chance, good)["verdict"].startswith("not measurable: the kappa")
    few = compare(truth, bad[:2], good[:2])["verdict"]
    assert few.endswith("; 2 seeds are too few for a conclusion, choose 5")


def test_the_best_arm_is_judged_against_the_better_baseline():
    truth = np.repeat(np.arange(5), 24)
    arms = ("real", "real_balanced", *comparison.ADDED, "synthetic_only")
    read = {arm: readers(truth, odds, i) for i, (arm, odds) in enumerate(zip(arms, (0.5, 0.7, 0.4, 0.4, 0.9, 0.5, 1)))}
    result = comparison.compare(truth, read)
    assert result["baseline"] == "real_balanced" and result["best"] == comparison.ADDED[2]
    assert comparison.ARMS[result["best"]] in result["verdict"] and "the best of 4 ways" in result["verdict"]
    kappa = {arm: np.array(result["arms"][arm]["qwk"]["by_seed"]) for arm in arms}
    np.testing.assert_allclose(result["differences"]["real"]["qwk"]["by_seed"], kappa["real"] - kappa["real_balanced"])
    assert result["differences"].keys() == set(arms) - {"real_balanced"}
    # with "real" as the baseline, recalls are still compared with those of "real_balanced"
    swapped = comparison.compare(truth, read | {"real": read["real_balanced"], "real_balanced": read["real"]})
    assert swapped["baseline"] == "real"
    recall = {arm: swapped["arms"][arm]["recall"]["MILD"]["mean"] for arm in arms}
    found = swapped["differences"][result["best"]]
    assert found["recall"]["MILD"]["mean"] == pytest.approx(recall[result["best"]] - recall["real_balanced"])
    assert found["qwk"]["mean"] == pytest.approx(result["differences"][result["best"]]["qwk"]["mean"])


def test_intervals_cover_and_are_paired():
    """95 % intervals of a known kappa hold it some 95 times of 100; differences are of the same photographs."""
    inside = 0
    for seed in range(40):
        truth = np.random.default_rng(seed).integers(5, size=100)
        read = readers(truth, 0.5, seed, seeds=3)
        low, high = compare(truth, read, read)["arms"]["real"]["qwk"]["interval"]
        inside += low <= 0.5 <= high
    assert 33 <= inside <= 40
    other = np.where(np.arange(100) % 4 == 0, truth, read)
    two = compare(truth, read, other)
    wide = [np.ptp(two["arms"][name]["qwk"]["interval"]) for name in ("real", "synthetic_balanced")]
    assert np.ptp(two["differences"]["synthetic_balanced"]["qwk"]["interval"]) < np.hypot(*wide)  # less than unpaired


def results_of(num_runs):
    """Results of runs that are judged by 30 photographs each, their readings, and their photographs' grades."""
    truths = [np.random.default_rng(run).integers(5, size=30) for run in range(num_runs)]
    arms = ("real", "real_balanced", "synthetic_balanced")
    reads = [{arm: readers(t, 0.6, 10 * run + i) for i, arm in enumerate(arms)} for run, t in enumerate(truths)]
    both = [{"generator": read, "full": {arm: rows[:, ::-1] for arm, rows in read.items()}} for read in reads]
    keys = [[f"{run}_{i}" for i in range(30)] for run in range(num_runs)]
    summaries = [comparison.summarize(t, read, key, extractor="grid") for t, read, key in zip(truths, both, keys)]
    return summaries, both, truths


def test_combined_runs_are_compared_as_one_set():
    summaries, reads, truths = results_of(2)
    combined = usefulness.combine_runs(json.loads(json.dumps(summaries)))
    for size in ("generator", "full"):
        together = {arm: np.concatenate([read[size][arm] for read in reads], axis=1) for arm in reads[0][size]}
        assert combined["sizes"][size] == comparison.compare(np.concatenate(truths), together)
    assert combined["runs"] == 2 and "2 runs" in usefulness.table(combined) and combined["size"] == "full"
    again = usefulness.combine_runs([combined, results_of(3)[0][2]])
    assert again["sizes"] == usefulness.combine_runs(results_of(3)[0])["sizes"]
    small = dict(summaries[1], sizes={"generator": summaries[1]["sizes"]["generator"]})
    assert usefulness.combine_runs([summaries[0], small])["sizes"].keys() == {"generator"}


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda one, other: [one, one], "the same photographs"),
        (lambda one, other: [one, {"missing": "no photographs"}], "no photographs"),
        (lambda one, other: [one, other | {"extractor": "another"}], "different extractors"),
        (lambda one, other: [one, other | {"seeds": 3}], "different numbers of seeds"),
        (lambda one, other: [], "no run"),
    ],
)
def test_runs_that_cannot_be_combined(change, reason):
    assert reason in usefulness.combine_runs(change(*results_of(2)[0]))["missing"]


# --- the whole measure


@pytest.fixture(scope="module")
def photographs():
    """Of which the training ones mislead, and the held-out ones do not."""
    return *squares(COUNTS, misleading=True), *squares([16] * 5, seed=1)


def test_synthetic_images_that_show_what_photographs_do_not_are_a_gain(photographs, tmp_path):
    synthetic, labels = squares([WANTED + 3] * 5, seed=2)
    lines, (training, _, held_out, _) = [], photographs
    large = tuple(images.repeat(2, axis=1).repeat(2, axis=2) for images in (training, held_out))
    options = {"seeds": 5, "cache_dir": tmp_path, "full_size": large}
    result = usefulness.measure(EXTRACTOR, *photographs, synthetic, labels, **options, log=lines.append)
    assert len(lines) == usefulness.num_stages(large) and len(list(tmp_path.iterdir())) == 12
    assert result["seeds"] == 5 and result["extractor"] == "grid" and result["size"] == "full"
    assert result["verdict"].startswith("at full size (for a user") and "a gain" in result["verdict"]
    assert "; for comparison, with half of the photographs -" in result["verdict"]
    for one in result["sizes"].values():
        assert tuple(one["arms"]) == ALL_ARMS and one["photographs"] == [16] * 5
        assert one["differences"]["synthetic_only"]["qwk"]["interval"][0] > 0
        assert np.sum(one["arms"]["real"]["confusion"]) == 5 * 80
    text = usefulness.table(json.loads(json.dumps(result)))
    assert all(title in text for title in comparison.ARMS.values())
    assert result["sizes"]["generator"]["verdict"] in text and max(map(len, text.splitlines()[:10])) <= 120


def test_synthetic_images_of_wrong_grades_are_a_loss_that_the_filter_reduces():
    """Half of them have a wrong grade."""
    synthetic, labels = squares([WANTED] * 5, seed=2)
    wrong = np.where(np.arange(len(labels)) % 2, labels, 4 - labels)
    wrong[labels == 2] = 2  # every grade still has as many
    order = np.argsort(wrong, kind="stable")
    data = *squares(COUNTS), *squares([16] * 5, seed=1)
    lines = []
    result = usefulness.measure(EXTRACTOR, *data, synthetic[order], wrong[order], seeds=5, log=lines.append)
    assert len(lines) == usefulness.num_stages() and result["size"] == "generator"
    one = result["sizes"]["generator"]
    kappa = {arm: entry["qwk"]["mean"] for arm, entry in one["arms"].items()}
    assert one["differences"]["synthetic_only"]["qwk"]["interval"][1] < 0
    for arm in ("synthetic_twice", "synthetic_only"):
        assert kappa[arm] < kappa[f"{arm}_filtered"] - 0.02


def test_a_generator_that_repeats_its_photographs_is_no_gain():
    (training, grades), held_out = squares(COUNTS), squares([16] * 5, seed=1)
    places = np.concatenate([np.resize(np.flatnonzero(grades == grade), WANTED) for grade in range(5)])
    copies = training[places], grades[places]
    result = usefulness.measure(EXTRACTOR, training, grades, *held_out, *copies, seeds=5, keep_share=1)
    assert "no measurable gain" in result["verdict"]
    difference = result["sizes"]["generator"]["differences"]["synthetic_balanced"]["qwk"]
    assert abs(difference["mean"]) < 0.03


@pytest.mark.parametrize(
    "training, held_out, synthetic, reason",
    [
        (COUNTS, [0] * 5, [24] * 5, "0 held-out photographs"),
        (COUNTS, [3, 0, 0, 0, 0], [24] * 5, "3 held-out photographs, of at most one grade"),
        ([0, 0, 9, 0, 0], [3] * 5, [24] * 5, "9 training photographs, of at most one grade"),
        (COUNTS, [3] * 5, [24, 24, 23, 24, 24], "23 synthetic images of MODERATE, 24 are needed"),
    ],
)
def test_a_reason_replaces_the_result(training, held_out, synthetic, reason):
    result = usefulness.measure(EXTRACTOR, *squares(training), *squares(held_out), *squares(synthetic))
    assert reason in result["missing"] and reason in usefulness.table(result)


def test_a_share_out_of_range_is_refused(photographs):
    with pytest.raises(ValueError, match="keep_share"):
        usefulness.measure(EXTRACTOR, *photographs, *squares([24] * 5), keep_share=0)


# --- augmentation


def test_augmented_images_are_transformed_and_a_function_of_the_seed():
    images = squares(COUNTS)[0][:18]
    found = augmented(images, 1)
    assert found.shape == images.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, augmented(images, 1))
    assert not (found == augmented(images, 2)).all((1, 2, 3)).any() and not (found == images).all((1, 2, 3)).any()
    np.testing.assert_allclose(found[:, 6:10, 6:10].mean((1, 2, 3)), images[:, 6:10, 6:10].mean((1, 2, 3)), rtol=0.6)
    assert augmented(images[:2], 1, min_size=32).shape == (2, 32, 32, 1)
    assert augmented(images[:2], 1, min_size=8).shape == (2, 16, 16, 1)
