"""Duplicates in a release, what is excluded because of them, and folds that keep copies together."""

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from scipy import ndimage

from idrid_jax.data.audit import Audit, audit, overlap
from idrid_jax.data.folds import assign_folds
from idrid_jax.data.release import ReleaseWriter, read_release
from idrid_jax.errors import UserError

real = pytest.mark.skipif(
    not {"IDRID_DIR", "IDRID_FACTS_DIR"} <= set(os.environ), reason="IDRID_DIR or IDRID_FACTS_DIR is not set"
)
sample = pytest.mark.skipif("IDRID_SAMPLE_DIR" not in os.environ, reason="IDRID_SAMPLE_DIR is not set")


def eye(seed: int, exposure: float = 1.0, width: int = 300, quality: int = 90) -> bytes:
    """A lit disc with a texture of its own (seed), as JPEG; its rim is the same for all."""
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(200, 300)), 2)
    y, x = np.mgrid[:200, :300]
    disc = (x - 140) ** 2 + (y - 100) ** 2 < 110**2
    pixels = np.clip(disc * exposure * (110 + 200 * texture), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB").resize((width, width * 2 // 3), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def write(out: Path, train=(), test=(), segmented=(), located=()) -> Path:
    """train, test: (photograph, grade[, edema]); segmented, located: (split, photograph)."""
    with ReleaseWriter(out, "Made up.") as writer:
        for split, photographs in (("train", train), ("test", test)):
            for one in photographs:
                writer.add_graded(split, *one)
        for split, data in segmented:
            writer.add_segmented(split, data, {})
        for split, data in located:
            writer.add_located(split, data, (1, 1), (2, 2))
    return out


def run(path: Path, **options) -> tuple[list[str], Audit]:
    remaining, found = audit(read_release(path), **options)
    assert remaining == found.remaining
    return [f"{one.split}/{one.id[-3:]}" for one in remaining.grading], found


def test_nothing_found(tmp_path):
    release = read_release(write(tmp_path / "r", [(eye(i), i) for i in range(5)], [(eye(9), 0)]))
    remaining, found = audit(release)
    assert remaining.records() == release.records()
    assert found.groups == found.exclusions == found.notes == ()
    assert "excluded: nothing" in found.text()


@pytest.mark.parametrize(
    "copy", (eye(1), eye(1, exposure=0.5), eye(1, quality=50), eye(1, width=450)), ids=("same", "dark", "q50", "larger")
)
def test_leak(tmp_path, copy):
    path = write(tmp_path / "r", [(eye(0), 2), (copy, 0), (eye(2), 1)], [(eye(3), 0), (eye(1), 3)])
    names, found = run(path)
    assert names == ["train/001", "train/003", "test/001", "test/002"]
    (line,) = map(str, found.exclusions)
    assert "train/IDRiD_002 (grade 0)" in line and "test/IDRiD_002 (grade 3)" in line
    assert line in found.text()
    names, found = run(path, keep_leaks=True)
    assert len(names) == 5 and found.exclusions == ()
    assert "in both splits" in found.notes[0] and "grades contradict" in found.notes[0]


@pytest.mark.parametrize("copy", (eye(1), eye(1, exposure=0.5)), ids=("same", "dark"))
def test_contradiction(tmp_path, copy):
    path = write(tmp_path / "r", [(eye(0), 2), (eye(1), 0), (copy, 1), (eye(1), 0)])
    names, found = run(path)
    assert names == ["train/001"]
    assert len(found.exclusions) == 3 and len(found.groups) == 1
    assert "train/IDRiD_002 (grade 0)" in str(found.exclusions[1])
    assert "train/IDRiD_003 (grade 1)" in str(found.exclusions[1])
    names, found = run(path, keep_contradictions=True)
    assert len(names) == 4 and "grades contradict" in found.notes[0]


def test_copies_that_agree_or_differ_only_in_edema_remain(tmp_path):
    train = [(eye(0), 2, 1), (eye(0), 2, 1), (eye(1), 3, 0), (eye(1), 3, 2)]
    names, found = run(write(tmp_path / "r", train, [(eye(4), 0), (eye(4), 1)]))
    assert len(names) == 6 and found.exclusions == ()
    agreeing, edema, test = found.notes
    assert "contradict" not in agreeing
    assert "edema" in edema and "0, 2" in edema
    assert "grades contradict" in test and "test/IDRiD_001 (grade 0) = test/IDRiD_002 (grade 1)" in test


def test_a_leak_is_reported_rather_than_a_contradiction(tmp_path):
    _, found = run(write(tmp_path / "r", [(eye(0), 1), (eye(0), 2)], [(eye(0), 1)]))
    assert all("of the test split" in one.reason for one in found.exclusions) and len(found.exclusions) == 2


def test_leaks_in_the_other_parts(tmp_path):
    photographs = [("train", eye(0)), ("train", eye(1)), ("test", eye(1, quality=60))]
    path = write(tmp_path / "r", segmented=photographs, located=photographs)
    remaining, found = audit(read_release(path))
    assert [(one.split, one.id) for one in remaining.segmentation] == [("train", "IDRiD_01"), ("test", "IDRiD_03")]
    assert [(one.split, one.id) for one in remaining.localization] == [("train", "IDRiD_001"), ("test", "IDRiD_001")]
    assert [str(one)[:2] for one in found.exclusions] == ["A ", "C "]


def test_parts_are_not_compared_with_each_other(tmp_path):
    _, found = run(write(tmp_path / "r", [(eye(0), 1)], located=[("test", eye(0))]))
    assert found.groups == ()


def test_small_photographs_are_compared_only_by_hash(tmp_path):
    """Generated images of 32 pixels look alike without being copies."""
    small = [(eye(0, width=96), 0), (eye(0, width=96, quality=50), 1), (eye(1, width=96), 2), (eye(1, width=96), 2)]
    names, found = run(write(tmp_path / "r", small))
    assert len(names) == 4 and [one.is_exact for one in found.groups] == [True]


def test_photographs_without_content_are_not_copies(tmp_path):
    file, other = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 200)).save(file, "PNG")
    Image.new("RGB", (300, 200), (9, 9, 9)).save(other, "PNG")
    path = write(tmp_path / "r", [(file.getvalue(), 0, 0, ".png"), (other.getvalue(), 1, 0, ".png"), (eye(0), 2)])
    assert run(path)[1].groups == ()


def test_the_fingerprint_reuses_the_hashes_of_the_audit(tmp_path, monkeypatch):
    release = read_release(write(tmp_path / "r", [(eye(0), 1), (eye(0), 2), (eye(1), 2)]))
    remaining, _ = audit(release)
    read_again = lambda source: pytest.fail(f"{source} is read again")
    monkeypatch.setattr("idrid_jax.data.release_files.Source.read", read_again)
    assert len({release.fingerprint(), remaining.fingerprint()}) == 2


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (20000, 20000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", (eye(0)[:4000], bomb()), ids=("truncated", "bomb"))
def test_bad_photograph(tmp_path, data):
    path = write(tmp_path / "r", [(eye(i), 0) for i in range(3)] + [(data, 1)])
    with pytest.raises(UserError, match="IDRiD_004.jpg"):
        audit(read_release(path))


def test_mask_of_another_size(tmp_path):
    with ReleaseWriter(tmp_path / "r", "") as writer:
        writer.add_segmented("train", eye(0), {"MA": np.ones((200, 300), bool)})
        writer.add_segmented("train", eye(1), {"MA": np.ones((100, 150), bool)})
    with pytest.raises(UserError, match="IDRiD_02_MA.tif.*150x100.*300x200"):
        audit(read_release(tmp_path / "r"))


def test_centers_outside_the_photograph_are_noted(tmp_path):
    with ReleaseWriter(tmp_path / "r", "") as writer:
        writer.add_located("train", eye(0), (2858, 1805), (10, 10))
    _, found = audit(read_release(tmp_path / "r"))
    (note,) = found.notes
    assert "train/IDRiD_001" in note and "(2858, 1805)" in note


def test_overlap(tmp_path):
    segmented = [("train", eye(0)), ("train", eye(1, quality=60)), ("test", eye(2)), ("test", eye(0))]
    graded = [(eye(5), 0), (eye(1), 1), (eye(0), 2), (eye(0), 2)]
    table = overlap(read_release(write(tmp_path / "r", graded, [(eye(7), 0)], segmented)))
    assert list(table.columns) == ["a_split", "a_id", "b_split", "b_id", "correlation"]
    assert list(zip(table.a_id, table.b_id)) == [
        ("IDRiD_01", "IDRiD_003"), ("IDRiD_02", "IDRiD_002"), ("IDRiD_04", "IDRiD_003"),
    ]  # fmt: skip
    assert table.correlation.between(0.9, 1).all() and table.correlation[0] == 1


def test_overlap_of_parts_that_are_absent(tmp_path):
    assert len(overlap(read_release(write(tmp_path / "r", [(eye(0), 1)])))) == 0


# The real release


@pytest.fixture(scope="module")
def official():
    release = read_release(os.environ["IDRID_DIR"])
    return release, *audit(release)


@pytest.mark.real_data
@real
def test_official_duplicates(official):
    _, remaining, found = official
    facts = pandas.read_csv(Path(os.environ["IDRID_FACTS_DIR"]) / "B_duplicates.csv")
    names = {frozenset(f"{one.split}/{one.id}" for one in group.records): group for group in found.groups}
    exact = {pair for pair, group in names.items() if group.is_exact}
    assert exact == {frozenset(pair) for pair in zip(facts.image_1, facts.image_2)}
    assert set(names) - exact == {frozenset(("train/IDRiD_013", "train/IDRiD_397"))}

    out = {f"{one.record.split}/{one.record.id[-3:]}" for one in found.exclusions}
    assert out == {f"train/{number}" for number in ("118", "021", "391", "028", "327", "013", "397")}
    counts = Counter(one.split for one in remaining.grading)
    assert counts == {"train": 406, "test": 103}
    assert any("edema risks contradict" in note and "045" in note and "333" in note for note in found.notes)
    assert len(found.notes) == 3


@pytest.mark.real_data
@real
def test_official_overlap(official):
    release = official[0]
    facts = pandas.read_csv(Path(os.environ["IDRID_FACTS_DIR"]) / "A_to_B_match.csv")
    facts = facts[facts.highpass_corr > 0.99]
    table = overlap(release)
    assert len(table) == len(facts) == 60
    copy = {"IDRiD_073": "IDRiD_375", "IDRiD_028": "IDRiD_327"}  # identical: we name the first, the facts the last

    def key(name: str) -> tuple[str, str]:
        return "test" if "Testing" in name else "train", name.rpartition("/")[2]

    ours = {(row.a_split, row.a_id): (row.b_split, copy.get(row.b_id, row.b_id)) for row in table.itertuples()}
    assert ours == {key(row.A_image): key(row.best_B_image) for row in facts.itertuples()}
    assert Counter(zip(table.a_split, table.b_split)) == {
        ("train", "train"): 42, ("test", "train"): 15, ("train", "test"): 3,
    }  # fmt: skip
    assert table.correlation.min() > 0.95


@pytest.mark.real_data
@real
def test_official_folds(official):
    _, remaining, found = official
    train = [one for one in remaining.grading if one.split == "train"]
    at = {(one.split, one.id): i for i, one in enumerate(train)}
    groups = [[at[one.split, one.id] for one in group.records if (one.split, one.id) in at] for group in found.groups]
    fold = assign_folds(np.array([one.grade for one in train]), groups, 5, 0)
    for grade in range(5):
        sizes = np.bincount(fold[[one.grade == grade for one in train]], minlength=5)
        assert max(sizes) - min(sizes) <= 2
    place = {one.id: fold[i] for i, one in enumerate(train)}
    assert place["IDRiD_045"] == place["IDRiD_333"] and place["IDRiD_073"] == place["IDRiD_375"]


@pytest.mark.real_data
@real
def test_official_text(official):
    text = official[2].text()
    assert "133    19       134      72             48  406" in text
    assert "with masks: MA 54, HE 53, EX 54, SE 26, OD 54" in text
    assert any("train/IDRiD_118" in line and "test/IDRiD_064" in line for line in text.splitlines())


@pytest.mark.real_data
@sample
def test_full_size_photographs():
    release = read_release(os.environ["IDRID_SAMPLE_DIR"])
    remaining, found = audit(release)
    pairs = {tuple(one.id[-3:] for one in group.records) for group in found.groups}
    assert {("118", "064"), ("021", "391"), ("028", "327")} == pairs
    leaks = [one for one in found.exclusions if "of the test split" in one.reason]
    assert [str(one)[:17] for one in leaks] == ["B train/IDRiD_118", "C train/IDRiD_118"]
    table = overlap(release)
    assert list(zip(table.a_id, table.b_split, table.b_id)) == [
        ("IDRiD_01", "train", "IDRiD_102"), ("IDRiD_09", "test", "IDRiD_091"),
    ]  # fmt: skip
