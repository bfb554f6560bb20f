"""The blind reader study: what the sheet shows, and how answers are scored."""

import shutil
from types import SimpleNamespace

import made_run
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from idrid_jax import cli
from idrid_jax.config import default_config
from idrid_jax.data import cache
from idrid_jax.data.prepare import prepare
from idrid_jax.errors import UserError
from idrid_jax.evaluation import blind
from idrid_jax.generation import sampling

REAL, GENERATED = blind.REAL, blind.GENERATED
SIZE, COUNTS = 32, (5, 2, 0, 3, 1)  # of photographs; photographs by grade
RNG = np.random.default_rng(0)
GRADES = np.repeat(range(5), COUNTS)
PHOTOGRAPHS = RNG.integers(0, 256, (len(GRADES), SIZE, SIZE, 3), np.uint8)
IDS = tuple(f"IDRiD_{i:03}" for i in range(len(GRADES)))


class Sampler(SimpleNamespace):
    """Stands for a generator: its images are a function of (seed, position, grade)."""

    step, conditioning_strength = 1, 1.0

    def images(self, grades, seed=0):
        for i, grade in enumerate(grades):
            yield np.random.default_rng([seed, i, grade]).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


CONDITIONAL, UNCONDITIONAL = (Sampler(network=SimpleNamespace(conditional=x)) for x in (True, False))


def write(sampler, out, **options):
    blind.write(sampler, PHOTOGRAPHS, GRADES, IDS, out, **options)
    return pd.read_csv(out / "key.csv")


def tiles(folder, group_size, group_count):
    """Each image of a sheet at its own size, in the order of their numbers."""
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    heading, row = blind.LABEL + blind.GAP, 128 + blind.LABEL + blind.GAP
    for i in range(group_size * group_count):
        group, column = divmod(i, group_size)
        y, x = group * (heading + row) + heading, column * (128 + blind.GAP)
        yield sheet[y : y + 128 : 4, x : x + 128 : 4]  # enlarged four times, pixel by pixel


def test_key_names_the_images_on_the_sheet(tmp_path):
    """A grade without photographs has no group."""
    key, answers = write(CONDITIONAL, tmp_path / "a", each=1, seed=4), pd.read_csv(tmp_path / "a" / "answers.csv")
    assert list(key["number"]) == list(range(1, 9)) == list(answers["number"])
    assert list(answers.columns) == ["number", "grade", "answer"] and answers["answer"].isna().all()
    assert list(key["grade"]) == [0, 0, 1, 1, 3, 3, 4, 4]
    assert all(set(group["origin"]) == {REAL, GENERATED} for _, group in key.groupby("grade"))
    generated = dict(zip((0, 1, 3, 4), CONDITIONAL.images([0, 1, 3, 4], seed=4)))
    for row, tile in zip(key.itertuples(), tiles(tmp_path / "a", 2, 4), strict=True):
        expected = generated[row.grade] if row.origin == GENERATED else PHOTOGRAPHS[IDS.index(row.image)]
        np.testing.assert_array_equal(tile, expected)


def test_order_is_a_function_of_the_seed(tmp_path):
    first, again = (write(UNCONDITIONAL, tmp_path / name, each=10, seed=1) for name in ("first", "again"))
    other = write(UNCONDITIONAL, tmp_path / "other", each=10, seed=2)
    assert first.equals(again) and list(first["origin"]) != list(other["origin"])
    assert first["grade"].isna().all() and len(first) == 20
    assert list(first["origin"]) not in (sorted(first["origin"]), sorted(first["origin"], reverse=True))


@pytest.mark.parametrize("each", [2, 4])
def test_too_few_photographs_name_the_largest_number_that_works(tmp_path, each):
    with pytest.raises(UserError, match=rf"--each {each}: grade 4 \(PROLIFERATIVE\) has 1 .* 1 or fewer"):
        write(CONDITIONAL, tmp_path / "a", each=each)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match=str(tmp_path)):
        write(CONDITIONAL, tmp_path, each=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_command_reads_the_cached_training_photographs_alone(tmp_path, capsys):
    release = made_run.write_release(tmp_path / "release")
    manifest = prepare(release, tmp_path / "data", tfds=False)[0]
    run = made_run.make_run(tmp_path / "run", manifest)
    training = cache.load(manifest, "train", size=SIZE, channels=3, crop=default_config().data.crop)
    shutil.rmtree(release)
    out = tmp_path / "blind"
    assert cli.main(["blind", "sheet", f"--workdir={run}", f"--out={out}", "--each=1", "--seed=4"]) == 0
    assert str(out / "sheet.png") in capsys.readouterr().out
    assert [path.name for path in manifest.folder.glob("cache/*/*")] == ["train"]
    generated = list(sampling.load_sampler(run).images(np.arange(5, dtype=np.int32), seed=4))
    for row, tile in zip(pd.read_csv(out / "key.csv").itertuples(), tiles(out, 2, 5), strict=True):
        photograph = row.origin == REAL
        expected = training.images[training.ids.index(row.image)] if photograph else generated[row.grade]
        np.testing.assert_array_equal(tile, expected)


# --- scores


def study(folder, origins, answers, grades=None):
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame({"number": range(1, len(origins) + 1), "grade": grades or [0] * len(origins)})
    frame.assign(origin=origins, image="x").to_csv(folder / "key.csv", index=False)
    frame.assign(answer=answers).to_csv(folder / "answers.csv", index=False)
    return folder / "answers.csv"


def test_scores_by_grade_and_in_all(tmp_path, capsys):
    origins = [REAL, REAL, GENERATED, GENERATED, REAL, GENERATED]
    answers = [REAL, GENERATED, GENERATED, " Generated ", REAL, ""]
    path = study(tmp_path, origins, answers, [0, 0, 0, 0, 3, 3])
    table = blind.score(path)
    assert list(table.index) == ["grade 0 (NO_DR)", "grade 3 (SEVERE)", "all"]
    assert list(table["answered"]) == [4, 1, 5] and list(table["right"]) == [0.75, 1.0, 0.8]
    assert table["called_real"].iloc[0] == 0 and np.isnan(table["called_real"].iloc[1])
    np.testing.assert_allclose(table["p"], [stats.binom.sf(k - 1, n, 0.5) for k, n in ((3, 4), (1, 1), (4, 5))])
    assert cli.main(["blind", "score", f"--answers={path}"]) == 0
    assert "80%" in capsys.readouterr().out


def test_answers_as_a_spreadsheet_saves_them_score_the_same(tmp_path):
    """Sorted by answer; or shuffled, with 1.0 in place of 1 and trailing rows of commas."""
    origins = [REAL, GENERATED, REAL, GENERATED, REAL] * 2 + [REAL]
    words = [REAL, REAL, GENERATED, GENERATED, ""] * 2 + [REAL]
    path = study(tmp_path, origins, words, [0] * 6 + [3] * 5)
    expected = blind.score(path)
    frame = pd.read_csv(path)
    frame.sort_values(["answer", "number"], ascending=False).to_csv(path, index=False)
    pd.testing.assert_frame_equal(blind.score(path), expected)
    frame.sample(frac=1, random_state=0).astype({"number": float}).to_csv(path, index=False)
    path.write_text(path.read_text() + ",,\n,,\n")
    pd.testing.assert_frame_equal(blind.score(path), expected)


@pytest.mark.parametrize("numbers, problem", [
    ([1, 2], "number 3 is missing:"),
    ([2], "number 1 is missing (and 1 more):"),
    ([1, 3, 3], "number 2 is missing, number 3 is there more than once:"),
    ([1, 2, 3, 7], "number 7 is not in key.csv:"),
    ([1, 2, 3, ""], "number (empty) is not in key.csv:"),
])  # fmt: skip
def test_numbers_must_be_those_of_the_key(tmp_path, numbers, problem):
    path = study(tmp_path, [REAL] * 3, [REAL] * 3)
    pd.DataFrame({"number": numbers, "grade": 0, "answer": REAL}).to_csv(path, index=False)
    with pytest.raises(UserError) as error:
        blind.score(path)
    assert str(error.value).startswith(f"{path}: {problem}") and "\n" not in str(error.value)


def test_files_that_cannot_be_scored_are_named(tmp_path):
    path = study(tmp_path, [REAL, REAL], [REAL, "maybe"])
    with pytest.raises(UserError, match="image 2: answer 'maybe'"):
        blind.score(path)
    study(tmp_path, [REAL], [""])
    with pytest.raises(UserError, match="no answer"):
        blind.score(path)
    path.write_text("number,grade\n1,0\n")
    with pytest.raises(UserError, match="no column answer"):
        blind.score(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a CSV"):
        blind.score(path)
    with pytest.raises(UserError, match="nowhere.csv"):
        blind.score(tmp_path / "nowhere.csv")
