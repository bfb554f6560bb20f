"""Images are a function of (checkpoint, seed, i, grade); what is written is a release that everything else reads."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
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
from idrid_jax.generation import interpolation, sampling
from idrid_jax.images import GRID_GAP, image_grid
from idrid_jax.training.checkpoint import Checkpoints

HEADER = b"Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\r\n"  # the official training file's first line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sampling")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(made_run.write_release(folder / "made up"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def workdir(folder, manifest):
    return made_run.make_run(folder / "run", manifest, steps=(3, 5))


@pytest.fixture(scope="module")
def sampler(workdir):
    return sampling.load(workdir)


@pytest.fixture(scope="module")
def unconditional(folder, manifest):
    return sampling.load(made_run.make_run(folder / "dcgan", manifest, network="dcgan28"))


def draw(sampler, grades, seed=0):
    return np.stack(list(sampler.images(np.asarray(grades), seed=seed)))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record.image.read())))


# -- drawing

def test_an_image_is_a_function_of_seed_place_and_grade(sampler):
    grades = np.arange(130) % 5
    all_of_them = draw(sampler, grades)
    assert all_of_them.shape == (130, 32, 32, 3) and all_of_them.dtype == np.uint8
    np.testing.assert_array_equal(draw(sampler, grades[:65]), all_of_them[:65])  # other batches, the same images
    np.testing.assert_array_equal(draw(sampler, grades[:1]), all_of_them[:1])
    changed = grades.copy()
    changed[::2] = (changed[::2] + 1) % 5
    differs = (draw(sampler, changed) != all_of_them).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(differs, changed != grades)  # the grade moves its own image and no other
    assert (draw(sampler, grades, seed=1) != all_of_them).any(axis=(1, 2, 3)).all()
    assert len({image.tobytes() for image in all_of_them}) == 130


def test_truncation_draws_from_smaller_latents(sampler):
    of = lambda truncation: np.stack(
        list(dataclasses.replace(sampler, truncation=truncation).images(np.zeros(12, np.int32)))
    ).astype(int)
    np.testing.assert_array_equal(of(1.0), np.stack(list(sampler.images(np.zeros(12, np.int32)))))
    spread = [of(truncation).std(axis=0).mean() for truncation in (1.0, 0.5, 0.0)]
    assert spread[0] > spread[1] > spread[2] == 0  # at 0 there is one image


def test_the_checkpoint_is_the_newest_or_the_one_asked_for(workdir, sampler):
    assert sampler.step == 5
    older = sampling.load(workdir, step=3)
    assert older.step == 3
    assert (draw(older, [0]) != draw(sampler, [0])).any()
    with pytest.raises(UserError, match="no checkpoint of step 4; there are 3, 5"):
        sampling.load(workdir, step=4)


def test_the_moving_average_is_used_where_there_is_one(folder, manifest):
    sampler = sampling.load(made_run.make_run(folder / "ema", manifest, ema_kimg=1.0))
    plain = sampling.load(made_run.make_run(folder / "no ema", manifest))
    like_plain = np.asarray(plain.params["image"]["kernel"])
    assert (np.asarray(sampler.params["image"]["kernel"]) != like_plain).any()  # of the same step, but the average
    assert (draw(sampler, [1]) != draw(plain, [1])).any()


def test_a_damaged_checkpoint_is_reported_and_stays_where_it_is(folder, manifest, capsys):
    """Sampling only reads: another process may be training on these checkpoints."""
    workdir = made_run.make_run(folder / "damaged", manifest, steps=(3, 5))
    newest = workdir / "checkpoints" / "5"
    damage(newest)
    before = files(workdir)
    assert sampling.load(workdir).step == 3
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "checkpoints/5: unreadable" in message and "taking step 3" in message
    with pytest.raises(UserError, match="checkpoints/5: unreadable"):
        sampling.load(workdir, step=5)
    damage(workdir / "checkpoints" / "3")
    with pytest.raises(UserError, match="unreadable") as caught:
        sampling.load(workdir)
    assert "\n" not in str(caught.value)
    assert files(workdir) == before


def damage(checkpoint):
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_run_without_a_checkpoint(folder, manifest):
    workdir = made_run.make_run(folder / "early", manifest, steps=())
    with pytest.raises(UserError, match="no checkpoint yet.*snapshot_kimg = 10"):
        sampling.load(workdir)


@pytest.mark.parametrize(("old", "new", "says"), [
    ('"cgan32"', '"cgan33"', "config.network = 'cgan33': did you mean cgan32"),
    ('"dtype"', '"dtyp"', "config.dtyp: no such field; did you mean dtype"),
    ('{', '', "not a run's record"),
])
def test_a_damaged_record_is_one_line(folder, workdir, tmp_path, old, new, says):
    text = (workdir / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=says) as caught:
        sampling.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_and_kept(folder, manifest):
    workdir = made_run.make_run(folder / "mixed up", manifest)
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"cgan32"', '"dcgan28"'))
    with pytest.raises(UserError, match="unreadable") as caught:
        sampling.load(workdir)
    assert "\n" not in str(caught.value)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [3]


# -- releases

def test_png_round_trip_is_exact(sampler, tmp_path):
    counts = [2, 0, 3, 1, 1]
    out = sampling.write_release(sampler, tmp_path / "out", counts, seed=4, suffix="png")
    records = read_release(out).grading
    assert [record.grade for record in records] == list(np.repeat(range(5), counts))
    assert {record.split for record in records} == {"train"} and {record.edema for record in records} == {-1}
    drawn = draw(sampler, np.repeat(range(5), counts), seed=4)
    np.testing.assert_array_equal(np.stack([pixels(record) for record in records]), drawn)


def test_jpeg_round_trip_is_near_and_quality_counts(sampler, tmp_path):
    drawn = draw(sampler, np.repeat(range(5), [1] * 5)).astype(float)
    errors = []
    for quality in (50, 95, 100):
        records = read_release(sampling.write_release(sampler, tmp_path / f"{quality}", [1] * 5,
                                                      quality=quality)).grading
        errors.append(np.abs(np.stack([pixels(record) for record in records]) - drawn).mean())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2, errors


def test_the_csv_and_the_layout_are_the_official_ones(sampler, tmp_path):
    out = sampling.write_release(sampler, tmp_path / "out", [1, 0, 0, 0, 2])
    labels = (out / layout.PARTS["B"] / layout.TRUTHS["B"] / layout.GRADING_CSV["train"]).read_bytes()
    rows = b"".join(b"IDRiD_%03d,%d,,,,,,,,,,\r\n" % row for row in ((1, 0), (2, 4), (3, 4)))
    assert labels == HEADER + rows
    images = out / layout.PARTS["B"] / layout.IMAGES
    assert sorted(path.name for path in images.iterdir()) == sorted(layout.SPLIT_FOLDERS.values())
    assert {path.suffix for path in (images / layout.SPLIT_FOLDERS["train"]).iterdir()} == {".jpg"}


def test_the_notice_says_that_it_is_synthetic_and_whence(sampler, unconditional, tmp_path):
    sampling.write_release(sampler, tmp_path / "release", [1] * 5, seed=7)
    sampling.write_images(unconditional, tmp_path / "images", 2, seed=7)
    for out, one in (("release", sampler), ("images", unconditional)):
        notice = (tmp_path / out / "README.txt").read_text()
        for words in ("Synthetic images", "no photograph of any patient", f"step {one.step}", "seed 7",
                      one.config.network,
                      one.run.fingerprint, "CC BY 4.0", "Not for diagnosis"):
            assert words in notice, words


def test_balance_levels_the_real_training_set_and_is_prepared_again(sampler, manifest, tmp_path):
    counts = sampling.balancing(sampler.run.counts)
    real = np.array(manifest.counts["grading"]["train"])
    assert list(real) == list(made_run.TRAIN) and set(real + counts) == {max(real)}
    out = sampling.write_release(sampler, tmp_path / "out", counts, suffix="png")
    again, text = prepare(out, tmp_path / "data", tfds=False)
    assert again.counts["grading"] == {"train": counts, "test": [0] * 5}, text
    kept, report = audit(read_release(out))
    assert len(kept.grading) == sum(counts) and not report.exclusions


def test_the_contact_sheet_has_a_row_for_each_grade_at_least(sampler, unconditional, tmp_path):
    size = lambda path: Image.open(path / sampling.SHEET).size
    step = 32 + GRID_GAP
    assert size(sampling.write_release(sampler, tmp_path / "a", [1, 13, 0, 2, 1])) == (12 * step - GRID_GAP, 5 * step - GRID_GAP)
    assert size(sampling.write_images(unconditional, tmp_path / "b", 13)) == (12 * 30 - GRID_GAP, 2 * 30 - GRID_GAP)
    many = size(sampling.write_release(sampler, tmp_path / "c", [300, 300, 0, 0, 0]))
    assert many == (12 * step - GRID_GAP, sampling.SHEET_ROWS * step - GRID_GAP)  # a sheet stays one that can be looked at


def test_the_contact_sheet_shows_the_first_of_each_grade(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SHEET_COLUMNS", 3)
    monkeypatch.setattr(sampling, "SHEET_ROWS", 6)
    counts = [7, 0, 2, 0, 130]
    drawn = draw(sampler, np.repeat(range(5), counts))
    white = np.full_like(drawn[:1], 255)
    want = image_grid(np.concatenate([drawn[:6], drawn[7:9], white, drawn[9:15]]), 3)
    out = sampling.write_release(sampler, tmp_path / "out", counts)
    np.testing.assert_array_equal(np.asarray(Image.open(out / sampling.SHEET)), np.asarray(want))


@pytest.mark.parametrize("kind", ["release", "images"])
def test_images_are_written_as_they_come_and_forgotten(sampler, unconditional, tmp_path, monkeypatch, kind):
    """Memory is of the sheet, not of how many images are asked for."""
    monkeypatch.setattr(sampling, "SHEET_COLUMNS", 1)
    monkeypatch.setattr(sampling, "SHEET_ROWS", 2)
    count, side, there = 48, 512, []

    def images(self, grades, *, seed=0):
        for i in range(len(grades)):
            there.append(sum(path.suffix == ".jpg" for path in files(tmp_path)))
            yield np.full((side, side, 3), i, np.uint8)

    monkeypatch.setattr(sampling.Sampler, "images", images)
    tracemalloc.start()
    try:
        if kind == "release":
            sampling.write_release(sampler, tmp_path / "out", [count // 2, 0, 0, count // 2, 0])
        else:
            sampling.write_images(unconditional, tmp_path / "out", count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert there == list(range(count))
    assert peak < count / 3 * side * side * 3


def test_unconditional_images_are_numbered(unconditional, tmp_path):
    out = sampling.write_images(unconditional, tmp_path / "out", 3, suffix="png", seed=2)
    assert sorted(path.name for path in out.iterdir()) == ["0001.png", "0002.png", "0003.png", "README.txt",
                                                           sampling.SHEET]
    drawn = draw(unconditional, np.zeros(3, int), seed=2)
    for number, image in enumerate(drawn, 1):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{number:04d}.png")), image[..., 0])
    with pytest.raises(UserError, match="unconditional"):
        sampling.write_release(unconditional, tmp_path / "graded", [1] * 5)
    assert not (tmp_path / "graded").exists()


@pytest.mark.parametrize("what", ["folder", "file", "below a file", "proc"])
def test_an_out_that_cannot_be_written_is_left_alone(sampler, unconditional, tmp_path, what):
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
    for write in (lambda: sampling.write_release(sampler, out, [1] * 5),
                  lambda: sampling.write_images(unconditional, out, 1)):
        with pytest.raises(UserError) as caught:
            write()
        assert "\n" not in str(caught.value) and "data_dir" not in str(caught.value)
    assert files(tmp_path) == before


def test_grades_that_are_not_heard_yet_are_refused_or_told(sampler, tmp_path):
    config = sampler.config.copy_and_resolve_references()
    kimg = sampler.step * config.batch_size / 1000
    config.conditioning.start_kimg = kimg
    with pytest.raises(UserError, match=f"at step {sampler.step} cgan32 hears no grade yet"):
        sampling.write_release(dataclasses.replace(sampler, config=config), tmp_path / "none", [1, 0, 0, 0, 0])
    with pytest.raises(UserError, match="hears no grade yet"):
        interpolation.between_latents(dataclasses.replace(sampler, config=config), [0, 1], 2)
    assert not list(tmp_path.iterdir())
    config.conditioning.start_kimg, config.conditioning.ramp_kimg = 0.0, 4 * kimg
    out = sampling.write_release(dataclasses.replace(sampler, config=config), tmp_path / "some", [1, 0, 0, 0, 0])
    assert "heard them by 25.0% only" in "".join(path.read_text() for path in out.rglob("README*"))


def test_nothing_asked_for_is_refused(sampler, tmp_path):
    with pytest.raises(UserError, match="no image is asked for"):
        sampling.write_release(sampler, tmp_path / "out", [0] * 5)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_in_the_middle_leaves_nothing(workdir, tmp_path, end):
    """And what it leaves hidden beside, the next call clears away."""
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(f"""
        import sys, time
        from idrid_jax.generation import interpolation
        from idrid_jax.generation import sampling
        encode = sampling.encode
        def slow(image, suffix, quality):
            slow.calls = getattr(slow, "calls", 0) + 1
            if slow.calls == 3:
                print("halfway", flush=True)
                time.sleep(60)
            return encode(image, suffix, quality)
        sampling.encode = slow
        sampling.write_release(sampling.load({str(workdir)!r}), {str(tmp_path / "out")!r}, [1] * 5)
    """))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               # a shell's "&" ignores it
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == "halfway\n"
    time.sleep(0.1)
    os.kill(process.pid, end)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not (tmp_path / "out").exists()
    if end == signal.SIGKILL:
        assert list(tmp_path.glob(".partial-*"))
    sampling.write_release(sampling.load(workdir), tmp_path / "out", [1] * 5)
    assert not list(tmp_path.glob(".partial-*"))
