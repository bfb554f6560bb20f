"""The fine-tuned grader: its two parts, its first heads, its training, and its row of `idrid-jax grade`."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from idrid_jax import cli
from idrid_jax.evaluation.features import efficientnet, pretrained
from idrid_jax.evaluation.graders import classifiers, fine_tuned, grade

COUNTS = (14, 6, 14, 8, 8)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(fine_tuned.SETTING, "epochs", 15)
        monkeypatch.setattr(fine_tuned, "BATCH_SIZE", 8)
        yield


@pytest.fixture(scope="module")
def network():
    return fine_tuned.Network.from_params(pretrained.load_efficientnet())


@pytest.fixture(scope="module")
def planted():
    """Activations [3, 50, 2, 2, 192] in which one direction shows the grade, and labels; a risk in five is unknown."""
    random = np.random.default_rng(0)
    grades = np.repeat(np.arange(5), COUNTS)
    random.shuffle(grades)
    direction = random.normal(size=192)
    activations = random.normal(size=(3, 50, 2, 2, 192)) + 0.15 * (grades[:, None, None, None] - 2) * direction
    edema = np.where(np.arange(50) % 5, np.clip(grades - 1, 0, 2), -1)
    return activations.astype(np.float16), {"grade": grades, "edema": edema}


@pytest.fixture(scope="module")
def trained(network, planted):
    """Two models: of photographs 0 to 39, and of all of them."""
    used = np.stack([np.arange(50) < 40, np.ones(50, bool)])
    return fine_tuned.train(network, *planted, used, np.array([0, 1]))


def test_the_two_parts_are_the_network(network):
    params = pretrained.load_efficientnet()
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    activations = efficientnet.first_blocks(network.first, images)
    assert activations.shape == (2, 7, 7, 192)
    found = efficientnet.last_blocks(efficientnet.split_params(params)[1], activations)
    np.testing.assert_allclose(found, efficientnet.features(params, images), atol=1e-5)


@pytest.mark.parametrize("absent", [None, 0, 2, 4])
def test_training_starts_from_an_ordinal_regression_of_the_frozen_features(network, planted, absent):
    activations, labels = planted
    used = labels["grade"] != absent
    features = fine_tuned._features(network, activations[:2])
    start = fine_tuned._start(network, features, labels, used)
    model = classifiers.fit(
        classifiers.CLASSIFIERS["ordinal_regression"],
        {"C": classifiers.ORDINAL_C},
        features[:, used],
        labels["grade"][used],
        seed=0,
    )
    found = fine_tuned.probabilities(network, start, activations[:2])
    np.testing.assert_allclose(found["grade"], classifiers.probabilities(model, features, 5), atol=2e-4)
    assert found["edema"].shape == (50, 3) and np.allclose(found["edema"].sum(1), 1)


def test_batches_have_the_grades_equally_often_and_only_photographs_in_use(planted):
    grades = planted[1]["grade"]
    used = np.arange(50) < 40
    variants, photographs = fine_tuned._batches(3, np.tile(grades, 10), np.tile(used, 10), seed=0)
    assert set(np.unique(variants)) == {0, 1, 2} and np.tile(used, 10)[photographs].all()
    share = np.bincount(np.tile(grades, 10)[photographs].ravel(), minlength=5) / photographs.size
    np.testing.assert_allclose(share, 0.2, atol=0.03)


def test_weights_balance_both_sides_of_each_threshold(planted):
    labels, used = planted[1], np.arange(50) < 40
    weights = fine_tuned._threshold_weights(labels, used)
    np.testing.assert_allclose(weights["grade"][0], [2.5, 1.25, 2.5 / 3, 0.625])  # grades above 0: 4 of 5
    np.testing.assert_allclose(weights["grade"][1], [0.625, 2.5 / 3, 1.25, 2.5])
    single = fine_tuned._threshold_weights({"grade": labels["grade"], "edema": np.zeros(50, int)}, used)
    assert not single["edema"].any()


@pytest.mark.slow(reason="trains for a minute")
def test_training_improves_the_reading_and_leaves_depthwise_kernels(network, planted, trained):
    activations, labels = planted
    features = fine_tuned._features(network, activations[:2])
    start = fine_tuned._start(network, features, labels, np.ones(50, bool))

    def likelihood(params):
        found = fine_tuned.probabilities(network, params, activations[:2])["grade"]
        return np.log(found[np.arange(50), labels["grade"]]).mean()

    assert likelihood(trained[1]) > likelihood(start) + 0.05
    for name, layer in trained[1]["convolutions"].items():
        before = start["convolutions"][name]["kernel"]
        assert np.array_equal(layer["kernel"], before) == name.endswith("_depthwise_conv"), name


@pytest.mark.slow(reason="trains for a minute")
def test_a_model_depends_on_its_own_photographs_and_seed_alone(network, planted, trained):
    activations, labels = planted
    changed = activations.copy()
    changed[:, 40:] = 0
    labels = {name: np.where(np.arange(50) < 40, label, 0) for name, label in labels.items()}
    used = np.stack([np.arange(50) < 40, np.arange(50) < 40])
    same, other = fine_tuned.train(network, changed, labels, used, np.array([0, 7]))
    for found, wanted in zip(jax.tree.leaves(same), jax.tree.leaves(trained[0])):
        np.testing.assert_array_equal(found, wanted)
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(same)))


@pytest.mark.slow(reason="trains for a minute")
def test_photographs_are_read_by_the_model_without_their_fold(network, planted, trained):
    activations, _ = planted
    folds = np.arange(50) % 2
    found = fine_tuned.out_of_fold(network, trained, activations[:2], folds)
    for fold in (0, 1):
        wanted = fine_tuned.probabilities(network, trained[fold], activations[:2, folds == fold])
        for name in wanted:
            np.testing.assert_allclose(found[name][folds == fold], wanted[name], atol=1e-5)
    mean = fine_tuned.mean_probabilities(network, trained, activations[:2])
    each = [fine_tuned.probabilities(network, params, activations[:2])["edema"] for params in trained]
    np.testing.assert_allclose(mean["edema"], np.mean(each, axis=0))


@pytest.mark.slow(reason="trains three models on images of 224 pixels")
def test_the_command_adds_a_row(phantom_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fine_tuned.SETTING, "epochs", 1)
    monkeypatch.setattr(fine_tuned, "NUM_AUGMENTED", 1)
    monkeypatch.setattr(fine_tuned, "NUM_SEEDS", 1)
    ordinal = dataclasses.replace(classifiers.CLASSIFIERS["ordinal_regression"], grid=({"C": 0.01},))
    monkeypatch.setattr(grade, "CLASSIFIERS", {"ordinal_regression": ordinal})
    flags = ["--out", tmp_path, "--data_dir", phantom_data, "--sizes=224", "--folds=2", "--repeats=1", "--fine_tune"]
    assert cli.main(["grade", *map(str, flags)]) == 0
    out = capsys.readouterr().out
    assert "fine-tuned" in out
    result = json.loads((tmp_path / "grading.json").read_text())
    (row,) = (row for row in result["rows"] if row["classifier"] == fine_tuned.NAME)
    for where in ("cv", "test"):
        assert np.isfinite([row[where]["qwk"], row["edema"][where]["qwk"], row["referable"][where]["auc"]]).all()
    assert result["seconds"]["fine_tuning"] > 0 and result["grader"]["classifier"] != fine_tuned.NAME
