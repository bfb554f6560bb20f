"""The sheet of a reader study, and what answers are worth."""

import shutil

import numpy as np
import pandas as pd
import pytest
from made_run import make_run, write_release
from PIL import Image
from scipy import stats

from idrid_jax import cli
from idrid_jax.config import default_config
from idrid_jax.errors import UserError
from idrid_jax.evaluation import blind


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that nobody trained, on a release that has a grade of one photograph."""
    root = tmp_path_factory.mktemp("blind")
    release = write_release(root / "release")
    assert cli.main(["prepare", f"--release={release}", f"--data_dir={root / 'data'}", "--notfds"]) == 0
    from idrid_jax.data.manifest import find_prepared

    manifest = find_prepared(root / "data")
    return {name: make_run(root / name, manifest, network=name) for name in ("cgan32", "dcgan28")}


def sheet(run, out, *flags):
    return cli.main(["blind", "sheet", f"--workdir={run}", f"--out={out}", *flags])


def test_the_key_says_what_each_image_is(runs, tmp_path):
    out = tmp_path / "blind"
    assert sheet(runs["cgan32"], out, "--each=1", "--seed=4") == 0
    key, answers = pd.read_csv(out / "key.csv"), pd.read_csv(out / "answers.csv")
    assert list(key["number"]) == list(range(1, 11)) == list(answers["number"])
    assert set(answers.columns) == {"number", "grade", "answer"} and answers["answer"].isna().all()
    assert list(key["grade"]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(set(some["origin"]) == {"real", "generated"} for _, some in key.groupby("grade"))

    from idrid_jax.evaluation import evaluate
    from idrid_jax.generation import sampling

    sampler = sampling.load(runs["cgan32"])
    _, training, _ = evaluate.photographs(runs["cgan32"], sampler, "")
    drawn = list(sampler.images(np.arange(5, dtype=np.int32), seed=4))
    picture = np.asarray(Image.open(out / "sheet.png"))
    block = blind.LABEL + blind.GAP + 128 + blind.LABEL + blind.GAP
    for row in key.itertuples():
        which, column = divmod(row.number - 1, 2)
        y, x = which * block + blind.LABEL + blind.GAP, column * (128 + blind.GAP)
        shown = picture[y : y + 128 : 4, x : x + 128 : 4]  # enlarged pixel by pixel
        want = drawn[row.grade] if row.origin == "generated" else training.images[training.ids.index(row.image)]
        np.testing.assert_array_equal(shown, np.broadcast_to(want, shown.shape))


def test_the_order_is_of_the_seed(runs, tmp_path):
    keys = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert sheet(runs["dcgan28"], tmp_path / name, "--each=10", f"--seed={seed}") == 0
        keys.append(pd.read_csv(tmp_path / name / "key.csv"))
    assert keys[0].equals(keys[1]) and list(keys[0]["origin"]) != list(keys[2]["origin"])
    assert keys[0]["grade"].isna().all() and len(keys[0]) == 20
    origins = list(keys[0]["origin"])
    assert origins not in (sorted(origins), sorted(origins, reverse=True))


def test_a_grade_without_photographs_is_left_out(runs, tmp_path):
    from idrid_jax.evaluation import evaluate
    from idrid_jax.generation import sampling

    sampler = sampling.load(runs["cgan32"])
    _, training, _ = evaluate.photographs(runs["cgan32"], sampler, "")
    rest = training.part(training.grades != 2)
    out = blind.write(sampler, rest.images, rest.grades, rest.ids, tmp_path / "blind", each=1)
    key = pd.read_csv(out / "key.csv")
    assert list(key["grade"]) == [0, 0, 1, 1, 3, 3, 4, 4]
    last = key[(key["grade"] == 4) & (key["origin"] == "generated")].iloc[0]
    want = list(sampler.images(np.array([0, 1, 3, 4], np.int32)))[3]
    picture = np.asarray(Image.open(out / "sheet.png"))
    y, x = 3 * (2 * blind.LABEL + 2 * blind.GAP + 128) + blind.LABEL + blind.GAP, (last.number - 7) * (128 + blind.GAP)
    np.testing.assert_array_equal(picture[y : y + 128 : 4, x : x + 128 : 4], want)


def test_refused(runs, tmp_path, capsys):
    assert sheet(runs["cgan32"], tmp_path / "a", "--each=2") == 2
    assert "--each 2: grade 4 (PROLIFERATIVE) has 1 training photographs; take 1 or fewer" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    assert sheet(runs["cgan32"], tmp_path / "full", "--each=1") == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_an_each_that_is_too_large_is_refused_once(runs, tmp_path, capsys):
    """It names what every grade has, not what the first one has that has too few."""
    assert sheet(runs["cgan32"], tmp_path / "a", "--each=4") == 2
    assert "--each 4: grade 4 (PROLIFERATIVE) has 1 training photographs; take 1 or fewer" in capsys.readouterr().err


def test_a_sheet_needs_the_training_photographs_alone(tmp_path):
    from idrid_jax.data import cache
    from idrid_jax.data.manifest import find_prepared

    release = write_release(tmp_path / "release")
    assert cli.main(["prepare", f"--release={release}", f"--data_dir={tmp_path / 'data'}", "--notfds"]) == 0
    manifest = find_prepared(tmp_path / "data")
    run = make_run(tmp_path / "run", manifest)
    cache.load(manifest, "train", size=32, channels=3, crop=default_config().data.crop)
    shutil.rmtree(release)
    assert sheet(run, tmp_path / "blind", "--each=1") == 0
    assert [path.name for path in manifest.folder.glob("cache/*/*")] == ["train"]


def study(folder, origins, answers, grades=None):
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame({"number": range(1, len(origins) + 1), "grade": grades or [0] * len(origins)})
    frame.assign(origin=origins, image="x").to_csv(folder / "key.csv", index=False)
    frame.assign(answer=answers).to_csv(folder / "answers.csv", index=False)
    return folder / "answers.csv"


def test_scores(tmp_path, capsys):
    real, fake = blind.REAL, blind.GENERATED
    origins = [real, real, fake, fake, real, fake]
    path = study(tmp_path, origins, [real, fake, fake, " Generated ", real, ""], [0, 0, 0, 0, 3, 3])
    table = blind.score(path)
    assert list(table.index) == ["grade 0 (NO_DR)", "grade 3 (SEVERE)", "all"]
    assert list(table["answered"]) == [4, 1, 5] and list(table["right"]) == [0.75, 1.0, 0.8]
    assert table["called_real"].iloc[0] == 0 and np.isnan(table["called_real"].iloc[1])
    np.testing.assert_allclose(table["p"], [stats.binom.sf(k - 1, n, 0.5) for k, n in ((3, 4), (1, 1), (4, 5))])
    assert cli.main(["blind", "score", f"--answers={path}"]) == 0
    assert "80%" in capsys.readouterr().out


def test_rows_in_any_order_score_the_same(tmp_path):
    """A spreadsheet sorts by the answers, adds rows of commas, and writes 1.0 for 1."""
    origins = ["real", "generated", "real", "generated", "real"] * 2 + ["real"]
    words = ["real", "real", "generated", "generated", ""] * 2 + ["real"]
    path = study(tmp_path, origins, words, [0] * 6 + [3] * 5)
    want = blind.score(path)
    frame = pd.read_csv(path)
    frame.sort_values(["answer", "number"], ascending=False).to_csv(path, index=False)
    pd.testing.assert_frame_equal(blind.score(path), want)
    mixed = frame.sample(frac=1, random_state=0).astype({"number": float})
    mixed.to_csv(path, index=False)
    path.write_text(path.read_text() + ",,\n,,\n")
    pd.testing.assert_frame_equal(blind.score(path), want)


@pytest.mark.parametrize(("numbers", "says"), [
    ([1, 2], "number 3 is missing: keep one row"),
    ([2], "number 1 is missing (and 1 more like it): keep one row"),
    ([1, 2, 3, 2], "number 2 is there more than once: keep one row"),
    ([1, 3, 3], "number 2 is missing, number 3 is there more than once: keep one row"),
    ([1, 2, 3, 7], "number 7 is not in key.csv: keep one row"),
    ([1, 2, 3, ""], "number (empty) is not in key.csv: keep one row"),
])  # fmt: skip
def test_numbers_that_are_not_the_key_s(tmp_path, numbers, says):
    path = study(tmp_path, ["real"] * 3, ["real"] * 3)
    pd.DataFrame({"number": numbers, "grade": 0, "answer": "real"}).to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        blind.score(path)
    assert str(caught.value).startswith(f"{path}: {says}") and "\n" not in str(caught.value)


def test_answers_that_are_none(tmp_path, capsys):
    def refused(path):
        assert cli.main(["blind", "score", f"--answers={path}"]) == 2
        return capsys.readouterr().err

    assert "is not there" in refused(tmp_path / "nowhere.csv")
    assert "no answer: write real or generated" in refused(study(tmp_path, ["real"], [""]))
    assert "image 2: answer 'maybe'" in refused(study(tmp_path, ["real", "real"], ["real", "maybe"]))
    path = study(tmp_path, ["real", "real"], ["real", "real"])
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    assert "number 2 is missing" in refused(path)
    path.write_text("number,grade\n1,0\n")
    assert "has no column answer" in refused(path)
