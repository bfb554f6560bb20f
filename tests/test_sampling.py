"""Sampling: images are a function of (checkpoint, seed, index, grade); releases that are written can be read again."""

import dataclasses
import io
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import made_run
import numpy as np
import pytest
from PIL import Image

from idrid_jax.data import layout
from idrid_jax.data.audit import audit
from idrid_jax.data.prepare import prepare
from idrid_jax.data.release import read_release
from idrid_jax.errors import UserError
from idrid_jax.generation import interpolation, release
from idrid_jax.generation.sampling import Sampler, load_sampler
from idrid_jax.images import GRID_GAP, image_grid
from idrid_jax.models import Network
from idrid_jax.training.checkpoint import Checkpoints, read_run

HEADER = b"Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n"  # the official training file's first line


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    """Batches of 8 images, so that a few images are several batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "sample_batch_size", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sampling")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(made_run.write_release(folder / "release"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def workdir(folder, manifest):
    return made_run.make_run(folder / "run", manifest, steps=(3, 5))


@pytest.fixture(scope="module")
def sampler(workdir):
    return load_sampler(workdir)


@pytest.fixture(scope="module")
def unconditional(folder, manifest):
    return load_sampler(made_run.make_run(folder / "dcgan", manifest, network="dcgan28"))


def sample(sampler, grades, seed=0):
    return np.stack(list(sampler.images(np.asarray(grades), seed=seed)))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record.image.read())))


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


# -- sampling


def test_an_image_is_a_function_of_seed_index_and_grade(sampler):
    grades = np.arange(20) % 5
    images = sample(sampler, grades)
    assert images.shape == (20, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(sample(sampler, grades[:9]), images[:9])  # other batches, the same images
    changed = grades.copy()
    changed[::2] = (changed[::2] + 1) % 5
    differs = (sample(sampler, changed) != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(differs, changed != grades)  # a grade changes its own image alone
    assert (sample(sampler, grades, seed=1) != images).any(axis=(1, 2, 3)).all()
    assert len({image.tobytes() for image in images}) == 20


def test_truncation_scales_the_latents(sampler):
    grades = np.zeros(6, np.int32)
    images = {t: sample(dataclasses.replace(sampler, truncation=t), grades).astype(int) for t in (1.0, 0.5, 0.0)}
    np.testing.assert_array_equal(images[1.0], sample(sampler, grades))
    spread = [image.std(axis=0).mean() for image in images.values()]
    assert spread[0] > spread[1] > spread[2] == 0  # without latents there is one image


def test_the_newest_checkpoint_or_the_chosen_step_is_loaded(workdir, sampler):
    assert sampler.step == 5
    older = load_sampler(workdir, step=3)
    assert older.step == 3
    assert (sample(older, [0]) != sample(sampler, [0])).any()
    with pytest.raises(UserError, match="step 4.* 3, 5"):
        load_sampler(workdir, step=4)


def test_the_best_checkpoint_is_read_and_the_last_one_is_known(folder, manifest):
    workdir = made_run.make_run(folder / "best", manifest, steps=(3, 5))
    without_scores = read_run(workdir, step=3)
    assert without_scores.best_step is None and without_scores.last_step == 5
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, without_scores.state, score=1.0)
    run = read_run(workdir)
    assert (int(run.state.step), run.best_step, run.last_step) == (3, 3, 5)


def test_the_moving_average_is_used_if_the_run_keeps_one(folder, manifest):
    averaged = load_sampler(made_run.make_run(folder / "ema", manifest, ema_kimg=1.0))
    plain = load_sampler(made_run.make_run(folder / "no ema", manifest))
    assert (np.asarray(averaged.params["image"]["kernel"]) != np.asarray(plain.params["image"]["kernel"])).any()
    assert (sample(averaged, [1]) != sample(plain, [1])).any()


def test_a_damaged_checkpoint_is_reported_and_not_moved(folder, manifest, capsys):
    """Sampling only reads: another process may be training on these checkpoints."""
    workdir = made_run.make_run(folder / "damaged", manifest, steps=(3, 5))
    damage(workdir / "checkpoints" / "5")
    before = files(workdir)
    assert load_sampler(workdir).step == 3
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "checkpoints/5" in message and "step 3" in message
    with pytest.raises(UserError, match="checkpoints/5"):
        load_sampler(workdir, step=5)
    damage(workdir / "checkpoints" / "3")
    with pytest.raises(UserError, match="unreadable") as caught:
        load_sampler(workdir)
    assert "\n" not in str(caught.value)
    assert files(workdir) == before


def damage(checkpoint):
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)


def test_a_run_without_a_checkpoint(folder, manifest):
    workdir = made_run.make_run(folder / "early", manifest, steps=())
    with pytest.raises(UserError, match="snapshot_kimg"):
        load_sampler(workdir)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"cgan32"', '"cgan33"', "config.network.*cgan32"),
        ('"dtype"', '"dtyp"', "config.dtyp.*dtype"),
        ('"training"', '"trained"', "training"),
        ('"trained_against"', '"against"', "trained_against"),
        ('"versions"', '"version"', "versions"),
        ("{", "", "json"),
    ],
)
def test_a_damaged_record_is_one_line(workdir, tmp_path, old, new, named):
    text = (workdir / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=named) as caught:
        load_sampler(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_and_kept(folder, manifest):
    workdir = made_run.make_run(folder / "mixed up", manifest)
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"cgan32"', '"dcgan28"'))
    with pytest.raises(UserError) as caught:
        load_sampler(workdir)
    assert "\n" not in str(caught.value)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [3]


# -- releases and folders


def test_a_png_release_holds_the_generated_images_exactly(sampler, tmp_path):
    counts = [2, 0, 3, 1, 1]
    out = release.write_release(sampler, tmp_path / "out", counts, seed=4, file_format="png")
    records = read_release(out).grading
    assert [record.grade for record in records] == list(np.repeat(range(5), counts))
    assert {record.split for record in records} == {"train"} and {record.edema for record in records} == {-1}
    images = sample(sampler, np.repeat(range(5), counts), seed=4)
    np.testing.assert_array_equal(np.stack([pixels(record) for record in records]), images)


def test_a_jpeg_release_is_closer_at_higher_quality(sampler, tmp_path):
    images = sample(sampler, np.repeat(range(5), [1] * 5)).astype(float)
    errors = []
    for quality in (50, 95, 100):
        out = release.write_release(sampler, tmp_path / f"{quality}", [1] * 5, quality=quality)
        errors.append(np.abs(np.stack([pixels(record) for record in read_release(out).grading]) - images).mean())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2, errors


def test_the_csv_and_the_layout_are_the_official_ones(sampler, tmp_path):
    out = release.write_release(sampler, tmp_path / "out", [1, 0, 0, 0, 2])
    labels = (out / layout.PARTS["B"] / layout.TRUTHS["B"] / layout.GRADING_CSV["train"]).read_bytes()
    rows = b"".join(b"IDRiD_%03d,%d,,,,,,,,,,\r\n" % row for row in ((1, 0), (2, 4), (3, 4)))
    assert labels == HEADER + rows
    images = out / layout.PARTS["B"] / layout.IMAGES
    assert sorted(path.name for path in images.iterdir()) == sorted(layout.SPLIT_FOLDERS.values())
    assert {path.suffix for path in (images / layout.SPLIT_FOLDERS["train"]).iterdir()} == {".jpg"}


def test_the_notice_names_the_generator_and_its_training_release(sampler, unconditional, tmp_path):
    release.write_release(sampler, tmp_path / "release", [1] * 5, seed=7)
    release.write_images(unconditional, tmp_path / "images", 2, seed=7)
    for out, one in (("release", sampler), ("images", unconditional)):
        notice = (tmp_path / out / "README.txt").read_text()
        named = ("Synthetic images", f"step {one.step}", "seed 7", one.config.network, one.run.fingerprint, "CC BY 4.0")
        assert all(words in notice for words in (*named, "Not for diagnosis")), notice


def test_balancing_counts_level_the_training_set_and_the_release_can_be_prepared(sampler, manifest, tmp_path):
    counts = release.balancing_counts(sampler.run.counts)
    real = np.array(manifest.counts["grading"]["train"])
    assert list(real) == list(made_run.TRAIN) and set(real + counts) == {max(real)}
    out = release.write_release(sampler, tmp_path / "out", counts, file_format="png")
    again, text = prepare(out, tmp_path / "data", tfds=False)
    assert again.counts["grading"] == {"train": counts, "test": [0] * 5}, text
    audited, report = audit(read_release(out))
    assert len(audited.grading) == sum(counts) and not report.exclusions


def test_the_contact_sheet_starts_a_row_at_each_grade(sampler, unconditional, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "SHEET_COLUMNS", 3)
    monkeypatch.setattr(release, "SHEET_ROWS", 6)
    counts = [7, 0, 2, 0, 9]
    images = sample(sampler, np.repeat(range(5), counts))
    white = np.full_like(images[:1], 255)
    expected = image_grid(np.concatenate([images[:6], images[7:9], white, images[9:15]]), 3)
    out = release.write_release(sampler, tmp_path / "graded", counts)
    np.testing.assert_array_equal(np.asarray(Image.open(out / release.CONTACT_SHEET)), np.asarray(expected))
    out = release.write_images(unconditional, tmp_path / "numbered", 4)
    assert Image.open(out / release.CONTACT_SHEET).size == (3 * 30 - GRID_GAP, 2 * 30 - GRID_GAP)


@pytest.mark.parametrize("kind", ["release", "images"])
def test_images_are_written_one_by_one(sampler, unconditional, tmp_path, monkeypatch, kind):
    """Memory does not grow with the number of images: only the contact sheet is held."""
    monkeypatch.setattr(release, "SHEET_COLUMNS", 1)
    monkeypatch.setattr(release, "SHEET_ROWS", 2)
    count, side, written = 24, 256, []

    def images(self, grades, *, seed=0):
        for i in range(len(grades)):
            written.append(sum(path.suffix == ".jpg" for path in files(tmp_path)))
            yield np.full((side, side, 3), i, np.uint8)

    monkeypatch.setattr(Sampler, "images", images)
    tracemalloc.start()
    try:
        if kind == "release":
            release.write_release(sampler, tmp_path / "out", [count // 2, 0, 0, count // 2, 0])
        else:
            release.write_images(unconditional, tmp_path / "out", count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written == list(range(count))
    assert peak < count / 2 * side * side * 3


def test_unconditional_images_are_numbered(unconditional, tmp_path):
    out = release.write_images(unconditional, tmp_path / "out", 3, file_format="png", seed=2)
    expected = ["0001.png", "0002.png", "0003.png", "README.txt", release.CONTACT_SHEET]
    assert sorted(path.name for path in out.iterdir()) == expected
    for number, image in enumerate(sample(unconditional, np.zeros(3, int), seed=2), 1):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{number:04d}.png")), image[..., 0])
    with pytest.raises(UserError, match="unconditional"):
        release.write_release(unconditional, tmp_path / "graded", [1] * 5)
    assert not (tmp_path / "graded").exists()


@pytest.mark.parametrize("what", ["folder", "file", "below a file", "proc"])
def test_an_out_that_cannot_be_written_is_not_changed(sampler, unconditional, tmp_path, what):
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    elif what == "file":
        out.write_text("mine")
    elif what == "below a file":
        out.write_text("mine")
        out = out / "below"
    else:
        out = "/proc/idrid_jax_out"
    before = files(tmp_path)
    for write, images in (
        (release.write_release, (sampler, out, [1] * 5)),
        (release.write_images, (unconditional, out, 1)),
    ):
        with pytest.raises(UserError) as caught:
            write(*images)
        assert "\n" not in str(caught.value) and "data_dir" not in str(caught.value)
    assert files(tmp_path) == before


def test_a_generator_before_its_conditioning_starts_is_refused(sampler, tmp_path):
    config = sampler.config.copy_and_resolve_references()
    changed = dataclasses.replace(sampler, config=config)
    kimg = sampler.step * config.batch_size / 1000
    config.conditioning.start_kimg = kimg
    with pytest.raises(UserError, match="config.conditioning.start_kimg"):
        release.write_release(changed, tmp_path / "none", [1, 0, 0, 0, 0])
    with pytest.raises(UserError, match="config.conditioning.start_kimg"):
        interpolation.interpolate_latents(changed, [0, 1], 2)
    assert not list(tmp_path.iterdir())
    config.conditioning.start_kimg, config.conditioning.ramp_kimg = 0.0, 4 * kimg
    out = release.write_release(changed, tmp_path / "some", [1, 0, 0, 0, 0])
    assert "25.0% strength" in "".join(path.read_text() for path in out.rglob("README*"))


def test_counts_of_zero_are_refused(sampler, tmp_path):
    with pytest.raises(UserError, match="counts"):
        release.write_release(sampler, tmp_path / "out", [0] * 5)


def test_an_interruption_leaves_nothing(sampler, tmp_path, monkeypatch):
    contents = iter([b"", b""])

    def interrupted(*_):
        try:
            return next(contents)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(release, "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        release.write_release(sampler, tmp_path / "out", [1] * 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # a process that imports JAX
def test_a_killed_process_leaves_a_partial_folder_that_the_next_call_removes(workdir, sampler, tmp_path):
    script = textwrap.dedent(f"""
        import time
        from idrid_jax.generation import release
        from idrid_jax.generation.sampling import load_sampler

        def wait(*_):
            print("halfway", flush=True)
            time.sleep(60)

        release.encode_image = wait
        release.write_release(load_sampler({str(workdir)!r}), {str(tmp_path / "out")!r}, [1] * 5)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "halfway\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".partial-*"))
    release.write_release(sampler, tmp_path / "out", [1] * 5)
    assert not list(tmp_path.glob(".partial-*"))
