"""Graders on pretrained features: measures against scikit-learn, classifiers, cross-validation, the grader's file."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, recall_score, roc_auc_score

from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers, cross_validation, frozen, metrics
from idrid_jax.evaluation.graders.classifiers import CLASSIFIERS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # pytest resets the filter
RNG = np.random.default_rng(0)
TRUTH = np.repeat(np.arange(5), (12, 4, 11, 8, 5))
EXTRACTOR = FeatureExtractor("colors:1 (trained on nothing)", lambda images: images.mean((1, 2)).astype(np.float32))


def random_probabilities(*shape):
    return RNG.dirichlet(np.ones(shape[-1]), shape[:-1])


def features_of(labels, noise=1.0, size=12):
    """Features [2, N, size] whose first value grows with the label."""
    features = RNG.normal(0, noise, (2, len(labels), size))
    features[..., 0] += 3 * labels
    return features


# --- measures


def test_measures_are_scikit_learns():
    probabilities = random_probabilities(3, len(TRUTH), 5)
    read = metrics.read_classes(probabilities)
    matrices = metrics.confusion(TRUTH, read, 5)
    scores = [cohen_kappa_score(TRUTH, one, weights="quadratic") for one in read]
    np.testing.assert_allclose(metrics.quadratic_kappa(matrices), scores)
    np.testing.assert_allclose(metrics.balanced_accuracy(matrices), [balanced_accuracy_score(TRUTH, r) for r in read])
    found = metrics.measure_classes(TRUTH, probabilities, GRADES)
    assert found["qwk"] == pytest.approx(np.mean(scores)) and found["photographs"] == len(TRUTH)
    assert found["qwk_interval"][0] < found["qwk"] < found["qwk_interval"][1]
    for label, name in enumerate(GRADES):
        areas = [roc_auc_score(TRUTH == label, one[:, label]) for one in probabilities]
        assert found["auc"][name] == pytest.approx(np.mean(areas))
        recalls = [recall_score(TRUTH, one, labels=[label], average=None)[0] for one in read]
        assert found["recall"][name] == pytest.approx(np.mean(recalls))
    json.dumps(found)


def test_auc_counts_equal_scores_half_and_needs_both_kinds():
    assert metrics.auc(np.array([0.1, 0.5, 0.5]), np.array([False, True, False])) == 0.75
    assert np.isnan(metrics.auc(np.array([0.1, 0.5]), np.array([True, True])))


def test_the_median_is_read():
    read = metrics.read_classes(np.array([[0.4, 0, 0.3, 0.3, 0], [0.6, 0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0, 1]]))
    assert read.tolist() == [2, 0, 4]


def test_referable_by_hand():
    probabilities = np.array([[[0.6, 0, 0.4, 0, 0], [0.9, 0, 0.1, 0, 0], [0.2, 0, 0.8, 0, 0], [0.1, 0.8, 0, 0, 0.1]]])
    found = metrics.measure_referable(np.array([2, 1, 4, 0]), probabilities)
    assert (found["auc"], found["sensitivity"], found["specificity"]) == (1.0, 0.5, 1.0)
    alone = metrics.measure_referable(np.array([0, 1, 0, 1]), probabilities)
    assert alone["auc"] is alone["auc_interval"] is alone["sensitivity"] is None and alone["specificity"] == 0.75


# --- classifiers


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_learns_and_is_deterministic(name):
    features, classifier = features_of(TRUTH, 0.3), CLASSIFIERS[name]
    setting, found = classifier.grid[0 if name == "mlp" else -1], []
    for _ in range(2):
        model = classifiers.fit(classifier, setting, features, TRUTH, seed=3)
        found.append(classifiers.probabilities(model, features, 5))
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0].sum(1), 1)
    kappa = metrics.quadratic_kappa(metrics.confusion(TRUTH, metrics.read_classes(found[0]), 5))
    assert kappa > 0.6


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_absent_classes_have_probability_0(name):
    labels, classifier = np.repeat([1, 3], 6), CLASSIFIERS[name]
    for some in (labels, np.full(12, 3)):
        model = classifiers.fit(classifier, classifier.grid[0], features_of(some, 0.1), some, seed=0)
        found = classifiers.probabilities(model, features_of(labels, 0.1), 5)
        assert (found[:, [0, 2, 4]] == 0).all() and np.allclose(found.sum(1), 1)
    assert (found[:, 3] == 1).all()


def test_probabilities_are_the_mean_over_sides():
    features = features_of(TRUTH)
    model = classifiers.fit(CLASSIFIERS["logistic_regression"], {"C": 1.0}, features, TRUTH, seed=0)
    each = [model.predict_proba(side) for side in features]
    np.testing.assert_allclose(classifiers.probabilities(model, features, 5), np.mean(each, axis=0))


def test_ordinal_probabilities_by_hand():
    logits = np.log([[3, 1, 1 / 3], [1, 3, 1]])  # P(above) 3/4, 1/2, 1/4; the second row would grow: 1/2, 3/4, 1/2
    found = classifiers.ordinal_probabilities(logits)
    np.testing.assert_allclose(found, [[0.25, 0.25, 0.25, 0.25], [0.5, 0, 0, 0.5]], atol=1e-12)


def test_ordinal_regression_of_two_classes_is_logistic_regression():
    x, y = features_of(np.repeat([0, 4], 9))[0], np.repeat([0, 4], 9)
    ours = classifiers.OrdinalRegression(C=0.1).fit(x, y)
    theirs = classifiers.LogisticRegression(C=0.1, class_weight="balanced").fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    assert ours.classes_.tolist() == [0, 4] and ours.coef_.shape == (1, 12)


# --- cross-validation


def test_every_repeat_covers_every_photograph_once_with_copies_together():
    folds = cross_validation.repeated_folds(TRUTH, [(0, 1, 2)], num_folds=4, repeats=3, seed=5)
    assert folds.shape == (3, len(TRUTH)) and len({row.tobytes() for row in folds}) == 3
    assert (folds[:, 0] == folds[:, 1]).all() and (folds[:, 0] == folds[:, 2]).all()

    fitted = []

    def fit(classifier, setting, features, labels, *, seed):
        fitted.append(set(features[0, :, 0].astype(int)))
        return fitted[-1]

    def probabilities(model, features, num_classes):
        assert not model & set(features[0, :, 0].astype(int))  # no photograph that was fitted to
        return np.eye(num_classes)[np.zeros(features.shape[1], int)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "fit", fit)
        patch.setattr(classifiers, "probabilities", probabilities)
        numbers = np.tile(np.arange(len(TRUTH), dtype=float)[None, :, None], (2, 1, 1))
        found = cross_validation.out_of_fold(None, {}, numbers, TRUTH, folds, 5, seed=0)
    assert (found[..., 0] == 1).all() and len(fitted) == 12


def test_the_better_setting_is_chosen():
    features = features_of(TRUTH, 0.3)
    grid = dataclasses.replace(CLASSIFIERS["ordinal_regression"], grid=({"C": 1e-9}, {"C": 1.0}))
    folds = cross_validation.repeated_folds(TRUTH, [], num_folds=3, repeats=2, seed=0)
    setting, found = cross_validation.choose_setting(grid, features, TRUTH, folds, 5, seed=0)
    assert setting == {"C": 1.0} and found.shape == (2, len(TRUTH), 5)


# --- the grader and its file

RISKS = np.repeat([0, 1, 2, -1], 10)


def fitted(kind="ordinal_regression", grades=TRUTH, edema=RISKS):
    release = {"fingerprint": "f" * 64, "size": 224, "crop": "field_of_view"}
    return frozen.fit(features_of(grades), grades, edema, kind=kind, setting={"C": 0.1}, extractor=EXTRACTOR, **release)


@pytest.mark.parametrize("kind", frozen.KINDS)
@pytest.mark.parametrize("grades", [TRUTH, TRUTH // 4])
def test_a_saved_grader_reads_as_its_classifier(tmp_path, kind, grades):
    features = features_of(grades)
    model = classifiers.fit(CLASSIFIERS[kind], {"C": 0.1}, features, grades, seed=0)
    options = {"extractor": EXTRACTOR, "fingerprint": "f" * 64, "size": 224, "crop": "field_of_view"}
    grader = frozen.fit(features, grades, RISKS, kind=kind, setting={"C": 0.1}, **options)
    frozen.save(grader, tmp_path / "grader.npz")
    loaded = frozen.load(tmp_path / "grader.npz", extractor=EXTRACTOR, fingerprint="f" * 64)
    np.testing.assert_allclose(loaded.probabilities(features), classifiers.probabilities(model, features, 5))
    assert loaded.probabilities(features, "edema").shape == (len(grades), len(EDEMA))
    assert (loaded.kind, loaded.size, loaded.crop) == (kind, 224, "field_of_view")


def test_unknown_edema_has_no_head(tmp_path):
    grader = fitted(edema=np.full(len(TRUTH), -1))
    frozen.save(grader, tmp_path / "grader.npz")
    assert list(frozen.load(tmp_path / "grader.npz").heads) == ["grade"]
    with pytest.raises(KeyError):
        grader.probabilities(features_of(TRUTH), "edema")


def test_sides_are_images_and_mirror_images(tmp_path):
    images = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    halves = FeatureExtractor("halves", lambda x: x[:, :, :4].mean((1, 2)).astype(np.float32))
    found = frozen.sides(halves, images)
    np.testing.assert_allclose(found[1], images[:, :, 4:].mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(found, frozen.sides(halves, images, tmp_path))


def changed(path, **changes):
    """Write a grader with other arrays; None removes one."""
    frozen.save(fitted(), path)
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"grade_mean": None},
        {"grade_mean": np.zeros(3)},
        {"grade_scale": np.zeros(12)},
        {"grade_classes": np.array([0, 1, 2, 3, 5])},
        {"grade_classes": np.array([0, 1, 1, 3, 4])},
        {"grade_coefficients": np.full((4, 12), np.nan)},
        {"grade_coefficients": np.zeros((5, 12))},
        {"edema_intercepts": np.array(["a", "b"])},
        {"description": np.array("{}")},
        {"description": np.array("[1]")},
        {"description": np.array("not JSON")},
        {"description": np.array([{"kind": "logistic_regression"}], object)},
    ],
)
def test_damaged_graders_are_refused(tmp_path, changes):
    changed(tmp_path / "grader.npz", **changes)
    with pytest.raises(UserError, match="cannot be read as a grader.*run idrid-jax grade again") as error:
        frozen.load(tmp_path / "grader.npz")
    assert "\n" not in str(error.value) and "allow_pickle" not in str(error.value).split("(")[0]


def test_missing_cut_and_mismatched_files_are_refused(tmp_path):
    path = tmp_path / "grader.npz"
    with pytest.raises(UserError, match="no such file"):
        frozen.load(path)
    frozen.save(fitted(), path)
    other = dataclasses.replace(EXTRACTOR, name="colors:2 (trained on nothing)")
    with pytest.raises(UserError, match="colors:1 .*colors:2"):
        frozen.load(path, extractor=other)
    with pytest.raises(UserError, match="f{12}.*abc"):
        frozen.load(path, fingerprint="abc")
    whole = path.read_bytes()
    for length in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read as a grader"):
            frozen.load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match="cannot be read as a grader"):
        frozen.load(path)
