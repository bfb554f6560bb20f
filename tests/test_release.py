"""Reading IDRiD from folders and zips, refusing faulty releases, and writing IDRiD's layout."""

import errno
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idrid_jax.data import layout
from idrid_jax.data.release import Graded, ReleaseWriter, Source, read_mask, read_release
from idrid_jax.errors import UserError

SIZE = (40, 60)  # (H, W)
TRAIN = (0, 1, 2, 3, 4, 0)
TEST = (2, 0)
B = layout.PARTS["B"]
TRAINING_CSV = f"{B}/{layout.TRUTHS['B']}/{layout.GRADING_CSV['train']}"
TRAINING_IMAGES = f"{B}/{layout.IMAGES}/{layout.SPLIT_FOLDERS['train']}"

real = pytest.mark.skipif("IDRID_DIR" not in os.environ, reason="IDRID_DIR is not set")
sample = pytest.mark.skipif("IDRID_SAMPLE_DIR" not in os.environ, reason="IDRID_SAMPLE_DIR is not set")


def photograph(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def a_mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SIZE) > 0.7


@pytest.fixture
def made(tmp_path) -> Path:
    """A synthetic release with all three parts."""
    out = tmp_path / "made"
    with ReleaseWriter(out, "Made up.") as writer:
        for split, grades, first in (("train", TRAIN, 0), ("test", TEST, 100)):
            for seed, grade in enumerate(grades, first):
                writer.add_graded(split, photograph(seed), grade, edema=seed % 4 - 1)
        writer.add_segmented("train", photograph(200), {"MA": a_mask(0), "EX": a_mask(1)})
        writer.add_segmented("train", photograph(201), {})
        writer.add_segmented("test", photograph(202), {"OD": a_mask(2), "SE": np.zeros(SIZE, bool)})
        writer.add_located("train", photograph(0), (3, 4.25), (50.5, 0))
        writer.add_located("test", photograph(100), (1, 2), (3, 4))
    return out


def zip_folder(folder: Path, file: Path, top: str = "", compression=zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for path in sorted(folder.rglob("*")):
            zipped.write(path, top + str(path.relative_to(folder)))


def zipped(release: Path, out: Path) -> Path:
    """The three zips, each with one folder of its own name, as distributed."""
    out.mkdir()
    for name in layout.PARTS.values():
        if (release / name).is_dir():
            zip_folder(release / name, out / f"{name}.zip", f"{name}/")
    return out


def content(release):
    """What a release contains, wherever it lies."""
    return (
        [(one.split, one.id, one.grade, one.edema, one.image.read()) for one in release.grading],
        [(x.split, x.id, {k: m.read() for k, m in x.masks.items()}, x.image.read()) for x in release.segmentation],
        [(one.split, one.id, one.disc, one.fovea, one.image.read()) for one in release.localization],
    )


def refused(path, *words) -> None:
    with pytest.raises(UserError) as caught:
        read_release(path)
    for word in words:
        assert str(word) in str(caught.value), caught.value


# The writer


def test_round_trip(made):
    release = read_release(made)
    assert release.root == made
    assert [(one.split, one.id, one.grade) for one in release.grading] == [
        *(("train", f"IDRiD_{i:03d}", grade) for i, grade in enumerate(TRAIN, 1)),
        *(("test", f"IDRiD_{i:03d}", grade) for i, grade in enumerate(TEST, 1)),
    ]
    assert [one.edema for one in release.grading] == [-1, 0, 1, 2, -1, 0, -1, 0]
    assert [one.image.read() for one in release.grading] == [photograph(i) for i in (0, 1, 2, 3, 4, 5, 100, 101)]
    assert [(x.split, x.id, set(x.masks)) for x in release.segmentation] == [
        ("train", "IDRiD_01", {"MA", "EX"}),
        ("train", "IDRiD_02", set()),
        ("test", "IDRiD_03", {"OD"}),
    ]
    np.testing.assert_array_equal(read_mask(release.segmentation[0].masks["MA"], SIZE), a_mask(0))
    np.testing.assert_array_equal(read_mask(release.segmentation[2].masks["OD"]), a_mask(2))
    assert [(x.disc, x.fovea) for x in release.localization] == [((3, 4.25), (50.5, 0)), ((1, 2), (3, 4))]


def test_official_form(made):
    """Names, headers, commas and line ends are those of the official files."""
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert "B. Disease Grading/1. Original Images/b. Testing Set/IDRiD_002.jpg" in files
    assert "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/3. Hard Exudates/IDRiD_01_EX.tif" in files
    assert not any("4. Soft Exudates" in name for name in files)  # no file for an empty mask
    assert (made / "README.txt").read_text() == "Made up.\n"

    truths = made / "B. Disease Grading/2. Groundtruths"
    training = (truths / "a. IDRiD_Disease Grading_Training Labels.csv").read_bytes()
    assert training.startswith(
        b"Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n"
        b"IDRiD_001,0,,,,,,,,,,\r\nIDRiD_002,1,0,,,,,,,,,\r\n"
    )
    testing = (truths / "b. IDRiD_Disease Grading_Testing Labels.csv").read_bytes()
    assert testing == b"Image name,Retinopathy grade,Risk of macular edema \r\nIDRiD_001,2,\r\nIDRiD_002,0,0\r\n"
    centres = made / "C. Localization/2. Groundtruths"
    for name in (
        "1. Optic Disc Center Location/a. IDRiD_OD_Center_Training Set_Markups.csv",
        "1. Optic Disc Center Location/b. IDRiD_OD_Center_Testing Set_Markups.csv",
        "2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv",
        "2. Fovea Center Location/IDRiD_Fovea_Center_Testing Set_Markups.csv",
    ):
        lines = (centres / name).read_bytes().split(b"\r\n")
        assert lines[0] == b"Image No,X- Coordinate,Y - Coordinate" + b"," * 45
        assert {line.count(b",") for line in lines[:-1]} == {47} and lines[-1] == b"" and lines[-2] == b"," * 47

    mask = made / "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif"
    with Image.open(mask) as image:
        assert (image.mode, image.size, image.tag_v2[258], image.tag_v2[259]) == ("P", (60, 40), (1,), 1)
        assert set(np.unique(np.asarray(image))) == {0, 1}


@pytest.mark.real_data
@sample
def test_headers_are_the_official_ones(made):
    official = Path(os.environ["IDRID_SAMPLE_DIR"])
    files = [path.relative_to(official) for path in official.rglob("*.csv")]
    assert len(files) == 6
    for file in files:
        assert (made / file).read_bytes().split(b"\r\n")[0] == (official / file).read_bytes().split(b"\r\n")[0]


@pytest.mark.parametrize("width", (1, 7, 8, 9))
def test_mask_of_any_width(tmp_path, width):
    mask = np.random.default_rng(width).random((5, width)) > 0.3
    with ReleaseWriter(tmp_path / "out", "") as writer:
        writer.add_segmented("train", photograph(0), {"HE": mask})
    np.testing.assert_array_equal(read_mask(read_release(tmp_path / "out").segmentation[0].masks["HE"]), mask)


def test_more_than_999_photographs(tmp_path):
    data = photograph(0)
    with ReleaseWriter(tmp_path / "out", "") as writer:
        names = [writer.add_graded("train", data, 0) for _ in range(1001)]
    assert (names[98], names[998], names[1000]) == ("IDRiD_099", "IDRiD_999", "IDRiD_1001")
    assert len(read_release(tmp_path / "out").grading) == 1001


def test_the_writer_leaves_nothing_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError):
        with ReleaseWriter(tmp_path / "out", "") as writer:
            writer.add_graded("train", photograph(0), 0)
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_writer_needs_a_new_or_empty_folder(made, tmp_path):
    with pytest.raises(UserError, match=str(made)):
        ReleaseWriter(made, "").__enter__()
    (tmp_path / "empty").mkdir()
    with ReleaseWriter(tmp_path / "empty", "") as writer:
        writer.add_graded("test", photograph(0), 3)
    assert read_release(tmp_path / "empty").grading[0].grade == 3


def test_the_writer_refuses_unwritable_folders_and_full_disks(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write under"):
        ReleaseWriter(tmp_path / "file" / "out", "").__enter__()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left on device"):
        with ReleaseWriter(tmp_path / "out", "") as writer:
            monkeypatch.setattr(Path, "write_bytes", full)
            writer.add_graded("train", photograph(0), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("grade, edema", ((5, 0), (-1, 0), (0, 3)))
def test_the_writer_refuses_unknown_labels(tmp_path, grade, edema):
    with ReleaseWriter(tmp_path / "out", "") as writer, pytest.raises(ValueError):
        writer.add_graded("train", photograph(0), grade, edema)


# Folders and zips


def test_zips_hold_the_same_release(made, tmp_path):
    zips = zipped(made, tmp_path / "zips")
    before = sorted(zips.iterdir())
    assert content(read_release(zips)) == content(read_release(made))
    assert read_release(zips).fingerprint() == read_release(made).fingerprint()
    assert sorted(zips.iterdir()) == before


def test_one_part_alone(made, tmp_path):
    zips = zipped(made, tmp_path / "zips")
    for path in (made / B, zips / f"{B}.zip"):
        release = read_release(path)
        assert len(release.grading) == 8 and release.segmentation == () and release.localization == ()
        assert "A. Segmentation" not in str(release.root)
    assert len(read_release(zips / "A. Segmentation.zip").segmentation) == 3


def test_outer_doubled_and_quoted_folders(made, tmp_path):
    around = tmp_path / "around" / "downloads" / "idrid"
    around.mkdir(parents=True)
    shutil.move(made / B, around / "B.%20Disease%20Grading" / B)
    shutil.move(made / "A. Segmentation", around / "A.%20Segmentation")
    (around / "notes.zip").write_text("a damaged zip that is not IDRiD's")
    release = read_release(tmp_path / "around")
    assert (len(release.grading), len(release.segmentation)) == (8, 3)
    assert release.root == around


def test_one_archive_of_everything(made, tmp_path):
    zip_folder(made, tmp_path / "archive.zip", "IDRiD%20data/")
    assert content(read_release(tmp_path / "archive.zip")) == content(read_release(made))


def test_a_release_too_deep_is_not_found(made, tmp_path):
    deep = tmp_path / "1" / "2" / "3" / "4" / "5"
    deep.mkdir(parents=True)
    shutil.move(made, deep)
    refused(tmp_path, "no release at")
    assert read_release(tmp_path / "1" / "2" / "3").grading


def test_a_folder_is_preferred_to_its_zip(made, tmp_path):
    zipped(made, tmp_path / "zips")
    for file in (tmp_path / "zips").iterdir():
        shutil.move(file, made)
    assert all(one.image.member is None for one in read_release(made).records())
    shutil.rmtree(made / B)  # one part is still zipped
    release = read_release(made)
    assert {one.image.member is None for one in release.grading} == {False}
    assert {one.image.member is None for one in release.segmentation} == {True}


def test_two_releases_are_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "second")
    refused(tmp_path, "holds 2 releases", made, tmp_path / "second")
    zip_folder(made, tmp_path / "second" / "other.zip", "x/")
    refused(tmp_path / "second", "holds 2 releases", "other.zip")


def test_reading_from_many_threads(made, tmp_path):
    release = read_release(zipped(made, tmp_path / "zips"))
    sources = [one.image for one in release.records()] * 20
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(Source.read, sources))
    assert together == [source.read() for source in sources]


def test_replaced_zip_is_read_again(made, tmp_path):
    zips = zipped(made, tmp_path / "zips")
    first = read_release(zips).fingerprint()
    (made / TRAINING_IMAGES / "IDRiD_001.jpg").write_bytes(photograph(999))
    zip_folder(made / B, zips / f"{B}.zip", f"{B}/")
    assert read_release(zips).fingerprint() != first


# The fingerprint


def test_fingerprint(made, tmp_path):
    first = read_release(made).fingerprint()
    assert len(first) == 64
    shutil.copytree(made, tmp_path / "elsewhere" / "else")
    assert read_release(tmp_path / "elsewhere").fingerprint() == first

    photo = made / TRAINING_IMAGES / "IDRiD_001.jpg"
    data = bytearray(photo.read_bytes())
    data[-3] ^= 1
    photo.write_bytes(data)
    second = read_release(made).fingerprint()
    table = made / TRAINING_CSV
    table.write_bytes(table.read_bytes().replace(b"IDRiD_005,4", b"IDRiD_005,3"))
    third = read_release(made).fingerprint()
    mask = next(made.rglob("*_MA.tif"))
    mask.write_bytes(mask.read_bytes()[:-1] + b"\xf0")
    assert len({first, second, third, read_release(made).fingerprint()}) == 4


# Unusual but valid


@pytest.mark.parametrize(
    "change",
    (
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: data.replace(b",,,,,,,,,\r\n", b"\r\n"),
        lambda data: data.replace(b"edema ,,,,,,,,,\r\n", b"edema\r\n"),
        lambda data: data + b",,,,,,,,,,,\r\n\r\n",
        lambda data: data.replace(b"IDRiD_003", b" IDRiD_003.jpg").replace(b"IDRiD_004", b"IDRiD_004.JPG"),
        lambda data: data.replace(b",3,2", b", 3.0 ,2 "),
    ),
    ids=("bom", "lf", "no padding", "padded rows alone", "blank rows", "ids with .jpg", "blanks and floats"),
)
def test_odd_csv(made, change):
    table = made / TRAINING_CSV
    before = read_release(made).fingerprint()
    assert change(table.read_bytes()) != table.read_bytes()
    table.write_bytes(change(table.read_bytes()))
    assert read_release(made).fingerprint() == before


def test_other_suffixes_and_unrelated_files(made):
    folder = made / TRAINING_IMAGES
    (folder / "IDRiD_001.jpg").rename(folder / "IDRiD_001.PNG")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._IDRiD_001.jpg").write_bytes(b"x")
    (made / "__MACOSX" / B / layout.IMAGES).mkdir(parents=True)
    assert read_release(made).grading[0].image.path.name == "IDRiD_001.PNG"


def save_mask(form: str, mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    if form == "palette":
        image = Image.fromarray(mask.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0])
    elif form == "rgba":
        image = Image.fromarray(np.stack([mask * 255, mask * 0, mask * 0, mask * 0 + 255], axis=-1).astype(np.uint8))
    elif form == "1":
        image = Image.fromarray(mask)
    else:
        image = Image.fromarray(mask.astype(np.uint8) * int(form))
    image.save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("form", ("palette", "rgba", "1", "76", "255"))
def test_masks(tmp_path, form):
    (tmp_path / "mask.tif").write_bytes(save_mask(form, a_mask(5)))
    mask = read_mask(Source(tmp_path / "mask.tif"), SIZE)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, a_mask(5))


def test_bad_masks(tmp_path):
    data = save_mask("255", a_mask(5))
    (tmp_path / "mask.tif").write_bytes(data)
    with pytest.raises(UserError, match="mask.tif.*60x40.*61x40"):
        read_mask(Source(tmp_path / "mask.tif"), (40, 61))
    for bad in (data[: len(data) // 3], b"no image", b""):
        (tmp_path / "mask.tif").write_bytes(bad)
        with pytest.raises(UserError, match="mask.tif"):
            read_mask(Source(tmp_path / "mask.tif"))


# Faulty releases


def test_no_release(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        refused(path, "no release at", path, "10.21227/H25W98", "CC BY 4.0", "B. Disease Grading")
    (tmp_path / "file.txt").write_text("x")
    refused(tmp_path / "file.txt", tmp_path / "file.txt")


def edit_csv(old: bytes, new: bytes):
    def change(root: Path) -> None:
        data = (root / TRAINING_CSV).read_bytes()
        assert old in data
        (root / TRAINING_CSV).write_bytes(data.replace(old, new, 1))

    return change


def edit_markup(old: bytes, new: bytes):
    def change(root: Path) -> None:
        path = root / "C. Localization" / layout.TRUTHS["C"] / layout.FOVEA_CSV["train"]
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return change


def stray_mask(root: Path) -> None:
    mask = next(root.rglob("*_MA.tif"))
    shutil.copy(mask, mask.with_name("IDRiD_77_MA.tif"))


def misnamed_mask(root: Path) -> None:
    mask = next(root.rglob("*_MA.tif"))
    mask.rename(mask.with_name("MA_IDRiD_01.tif"))


@pytest.mark.parametrize(
    "change, words",
    (
        (lambda root: (root / TRAINING_IMAGES / "IDRiD_004.jpg").unlink(), ("IDRiD_004", TRAINING_CSV)),
        (
            lambda root: (root / TRAINING_IMAGES / "IDRiD_07.jpg").write_bytes(b""),
            ("IDRiD_07.jpg", TRAINING_CSV),
        ),
        (lambda root: (root / TRAINING_IMAGES / "IDRiD_001.png").write_bytes(b""), ("IDRiD_001.jpg", "IDRiD_001.png")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,5"), (TRAINING_CSV, "IDRiD_004", "'5'", "0 to 4")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,-1"), (TRAINING_CSV, "IDRiD_004", "'-1'")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,2.5"), (TRAINING_CSV, "IDRiD_004", "'2.5'")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,severe"), (TRAINING_CSV, "IDRiD_004", "'severe'")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,nan"), (TRAINING_CSV, "IDRiD_004", "'nan'")),
        (edit_csv(b"IDRiD_004,3", b"IDRiD_004,"), (TRAINING_CSV, "IDRiD_004", "''")),
        (edit_csv(b"IDRiD_004,3,2", b"IDRiD_004,3,7"), (TRAINING_CSV, "IDRiD_004", "'7'", "macular edema")),
        (edit_csv(b"IDRiD_004,", b"IDRiD_003,"), (TRAINING_CSV, "IDRiD_003", "row 5")),
        (edit_csv(b"IDRiD_004,", b","), (TRAINING_CSV, "row 5")),
        (edit_csv(b"Retinopathy grade", b"Grade"), (TRAINING_CSV, "Retinopathy grade")),
        (lambda root: (root / TRAINING_CSV).unlink(), (layout.GRADING_CSV["train"],)),
        (lambda root: (root / TRAINING_CSV).write_bytes(b""), (TRAINING_CSV,)),
        (lambda root: (root / TRAINING_CSV).write_bytes(b"\xff\xfe\0\x9d"), (TRAINING_CSV,)),
        (lambda root: (root / TRAINING_CSV).write_bytes(b'a,"b\nc'), (TRAINING_CSV,)),
        (edit_markup(b"50.5", b"left"), ("Fovea", "IDRiD_001", "'left'")),
        (edit_markup(b"50.5", b"-2"), ("Fovea", "IDRiD_001", "'-2'")),
        (edit_markup(b"IDRiD_001", b"IDRiD_009"), ("Fovea", "IDRiD_009")),
        (stray_mask, ("IDRiD_77_MA.tif",)),
        (misnamed_mask, ("MA_IDRiD_01.tif",)),
        (lambda root: shutil.rmtree(root / B / layout.IMAGES), ("IDRiD_001", "5 more")),
    ),
)  # fmt: skip
def test_bad_release(made, change, words):
    change(made)
    refused(made, *words)


def test_damaged_zips(made, tmp_path):
    zips = zipped(made, tmp_path / "zips")
    file = zips / f"{B}.zip"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused(zips, f"{B}.zip")
    refused(file, f"{B}.zip")
    at = data.index(b"IDRiD_001.jpg") + 200  # in the middle of a photograph: the directory is still whole
    file.write_bytes(data[:at] + bytes(50) + data[at + 50 :])
    with pytest.raises(UserError, match="IDRiD_001.jpg"):
        read_release(zips).fingerprint()


@pytest.mark.parametrize("name", ("../../x.jpg", f"{B}/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg"))
def test_a_zip_with_members_outside_of_it_is_refused(made, tmp_path, name):
    zips = zipped(made, tmp_path / "zips")
    with zipfile.ZipFile(zips / f"{B}.zip", "a") as file:
        file.writestr(name, b"x")
    refused(zips, f"{B}.zip", repr(name))
    refused(zips / f"{B}.zip", repr(name))


def test_the_kaggle_mirror_is_refused(tmp_path):
    (tmp_path / "mirror" / "Imagenes" / "Imagenes").mkdir(parents=True)
    (tmp_path / "mirror" / "Imagenes" / "Imagenes" / "IDRiD_001.jpg").write_bytes(photograph(0))
    (tmp_path / "mirror" / "idrid_labels.csv").write_text("id_code,diagnosis\nIDRiD_001,3\n")
    zip_folder(tmp_path / "mirror", tmp_path / "archive.zip")
    for path in ("mirror", "mirror/Imagenes", "archive.zip", "."):
        refused(tmp_path / path, "Kaggle", "10.21227/H25W98")


def test_imports_neither_tensorflow_nor_jax():
    code = "import sys, idrid_jax.data.audit, idrid_jax.data.release; print(*{'jax', 'tensorflow'} & set(sys.modules))"
    root = str(Path(__file__).parent.parent)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert run.stdout.strip() == ""


# The real release


@pytest.mark.real_data
@real
def test_official_counts():
    release = read_release(os.environ["IDRID_DIR"])
    counts = Counter((one.split, one.grade) for one in release.grading)
    assert [counts["train", grade] for grade in range(5)] == [134, 20, 136, 74, 49]
    assert [counts["test", grade] for grade in range(5)] == [34, 5, 32, 19, 13]
    risks = Counter((one.split, one.edema) for one in release.grading)
    assert [risks["train", risk] for risk in range(3)] == [177, 41, 195]
    assert [risks["test", risk] for risk in range(3)] == [45, 10, 48]
    masks = Counter((one.split, lesion) for one in release.segmentation for lesion in one.masks)
    assert [masks["train", lesion] for lesion in layout.LESIONS] == [54, 53, 54, 26, 54]
    assert [masks["test", lesion] for lesion in layout.LESIONS] == [27, 27, 27, 14, 27]
    assert "HE" not in next(x for x in release.segmentation if x.id == "IDRiD_43").masks
    assert release.localization == ()


@pytest.mark.real_data
@sample
def test_official_files_at_full_size(tmp_path):
    release = read_release(os.environ["IDRID_SAMPLE_DIR"])
    assert (len(release.grading), len(release.segmentation), len(release.localization)) == (23, 6, 23)
    assert release.grading[0] == Graded("train", "IDRiD_001", release.grading[0].image, 3, 2)
    assert (release.localization[0].disc, release.localization[0].fovea) == ((2858, 1805), (1494, 1970))
    for record in release.segmentation[-1:]:  # IDRiD_81, whose EX is RGBA
        for mask in record.masks.values():
            share = read_mask(mask, (2848, 4288)).mean()
            assert 0 < share < 0.1
    zips = zipped_uncompressed(Path(os.environ["IDRID_SAMPLE_DIR"]), tmp_path / "zips")
    assert read_release(zips).fingerprint() == release.fingerprint()


def zipped_uncompressed(release: Path, out: Path) -> Path:
    out.mkdir()
    for name in layout.PARTS.values():
        zip_folder(release / name, out / f"{name}.zip", f"{name}/", zipfile.ZIP_STORED)
    return out
