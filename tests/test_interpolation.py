"""Interpolation: the ends of each row are the images of `sample`; what lies between follows the formulas."""

import made_run
import numpy as np
import pytest
from PIL import Image

from idrid_jax import cli
from idrid_jax.data.prepare import prepare
from idrid_jax.generation import interpolation
from idrid_jax.generation.sampling import load_sampler
from idrid_jax.images import GRID_GAP
from idrid_jax.models import Network


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    """Batches of 8 images, so that a few images are several batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "sample_batch_size", 8)
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpolation")
    return prepare(made_run.write_release(folder / "release"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, manifest):
    return made_run.make_run(tmp_path_factory.mktemp("runs") / "cgan", manifest)


@pytest.fixture(scope="module")
def sampler(workdir):
    return load_sampler(workdir)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory, manifest):
    return made_run.make_run(tmp_path_factory.mktemp("runs") / "dcgan", manifest, network="dcgan28")


def sampled(sampler, grades, seed=0):
    return np.stack(list(sampler.images(np.asarray(grades), seed=seed))).astype(int)


# -- latents


def test_slerp_against_the_rotation_in_the_plane_of_both():
    """Rotates in an orthonormal basis of the plane instead of using sines of parts of the angle."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 7)
    for _ in range(20):
        a, b = (rng.standard_normal(100).astype(np.float32) for _ in range(2))
        x = a.astype(np.float64)
        first = x / np.linalg.norm(x)
        second = b - (b @ first) * first
        second /= np.linalg.norm(second)
        angle = np.arctan2(b @ second, b @ first)
        norm = (1 - t) * np.linalg.norm(a) + t * np.linalg.norm(b)
        expected = norm[:, None] * (np.cos(t * angle)[:, None] * first + np.sin(t * angle)[:, None] * second)
        got = interpolation.slerp(a, b, t)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=2e-6)
        assert np.array_equal(got[0], a) and np.array_equal(got[-1], b)


def test_slerp_keeps_the_norm_where_a_straight_line_does_not():
    a, b = np.eye(2, 50) * 7
    t = np.linspace(0, 1, 9)
    np.testing.assert_allclose(np.linalg.norm(interpolation.slerp(a, b, t), axis=1), 7, rtol=1e-6)
    assert np.linalg.norm((a + b) / 2) < 5
    angles = np.arccos(interpolation.slerp(a, b, t) @ a / 49)
    np.testing.assert_allclose(np.diff(angles), np.pi / 16, atol=1e-4)  # at constant speed


@pytest.mark.parametrize("b", [[2.0, 0], [-1.0, 0], [0.0, 0]])
def test_slerp_of_parallel_latents_is_a_straight_line(b):
    rows = interpolation.slerp([1.0, 0], b, np.array([0, 0.25, 1]))
    np.testing.assert_allclose(rows[:, 0], [1, 0.75 + 0.25 * b[0], b[0]], atol=1e-6)


def test_rows_of_latents_end_in_the_images_of_sample(sampler):
    grades = [3, 0, 2]
    rows = interpolation.interpolate_latents(sampler, grades, 5, seed=4).astype(int)
    assert rows.shape == (3, 5, 32, 32, 3)
    own = sampled(sampler, np.repeat(grades, 2), seed=4)
    np.testing.assert_allclose(rows[:, 0], own[::2], atol=1)  # rounded after another fusion
    np.testing.assert_allclose(rows[:, -1], own[1::2], atol=1)
    assert (np.abs(np.diff(rows, axis=1)).max((2, 3, 4)) > 1).all()  # and moves at every step


# -- grades


def test_the_grade_path_passes_through_the_grades():
    expected = [[1, 0, 0, 0, 0], [0.5, 0, 0, 0, 0.5], [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(interpolation.grade_path([0, 4], 3), expected)
    through = interpolation.grade_path([0, 1, 3], 5)
    np.testing.assert_allclose(through @ np.arange(5), [0, 0.5, 1, 2, 3])
    np.testing.assert_allclose(interpolation.grade_path([2, 0, 4, 1], 11).sum(1), 1, rtol=1e-6)
    for grades, frames in (([1], 3), ([0, 4], 1)):
        with pytest.raises(ValueError, match="at least two"):
            interpolation.grade_path(grades, frames)


def test_rows_of_grades_pass_through_the_images_of_sample(sampler):
    rows = interpolation.interpolate_grades(sampler, [1, 4, 0], 4, 5, seed=2).astype(int)
    for frame, grade in ((0, 1), (2, 4), (4, 0)):
        np.testing.assert_allclose(rows[:, frame], sampled(sampler, [grade] * 4, seed=2), atol=1)
    assert (np.abs(np.diff(rows, axis=1)).max((2, 3, 4)) > 1).all()


def test_grade_weights_mix_the_embeddings(sampler):
    """The same as grade 3 with the mixture in the place of its embedding."""
    z = interpolation.latents(sampler, 2)
    weights = np.array([0.3, 0, 0.7, 0, 0], np.float32)
    table = np.asarray(sampler.params["embed"]["embedding"])
    mixed = table.copy()
    mixed[3] = 0.3 * table[0] + 0.7 * table[2]
    params = sampler.params | {"embed": {"embedding": mixed}}
    expected = np.asarray(sampler.generator.eval(params, sampler.stats, z, np.array([3, 3])))
    got = interpolation.generate(sampler, z, np.tile(weights, (2, 1)))
    np.testing.assert_allclose(got, (expected + 1) * 127.5, atol=0.51)


def test_more_images_than_one_batch(sampler):
    whole = interpolation.interpolate_latents(sampler, [0] * 4, 5)
    again = interpolation.interpolate_latents(sampler, [0], 5)
    assert len(whole) * 5 > sampler.network.sample_batch_size > 5
    np.testing.assert_allclose(whole[:1].astype(int), again, atol=1)


# -- files


def frames_of(path):
    with Image.open(path) as picture:
        info, frames = dict(picture.info), []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            frames.append(np.asarray(picture.convert("RGB"), int))
    return info, frames


def test_a_strip_shows_the_interpolated_images(workdir, sampler, tmp_path, capsys):
    out = tmp_path / "strip.png"
    command = ["interpolate", f"--workdir={workdir}", f"--out={out}", "--seed=5"]
    assert cli.main([*command, "--rows=3", "--frames=4"]) == 0
    assert "of grades 0, 1, 2, 4 images each" in capsys.readouterr().out
    picture, step = np.asarray(Image.open(out)), 32 + GRID_GAP
    assert picture.shape == (3 * step - GRID_GAP, 4 * step - GRID_GAP, 3)
    images = interpolation.interpolate_latents(sampler, [0, 1, 2], 4, seed=5)
    np.testing.assert_array_equal(picture[step : step + 32, 3 * step : 3 * step + 32], images[1, 3])
    assert cli.main([*command, "--rows=2", "--grades=0,4"]) == 0  # replaces the file
    assert Image.open(out).size == (9 * step - GRID_GAP, 2 * step - GRID_GAP)
    assert [path.name for path in tmp_path.iterdir()] == ["strip.png"]


def test_a_gif_plays_forwards_and_backwards(workdir, sampler, tmp_path):
    out = tmp_path / "out.gif"
    assert cli.main(["interpolate", f"--workdir={workdir}", f"--out={out}", "--rows=2", "--frames=6", "--grade=3"]) == 0
    info, frames = frames_of(out)
    assert len(frames) == 2 * 6 - 2 and info["loop"] == 0 and info["duration"] == interpolation.FRAME_MILLISECONDS
    images = interpolation.interpolate_latents(sampler, [3, 3], 6)
    for frame, shown in zip([0, 1, 2, 3, 4, 5, 4, 3, 2, 1], frames):
        assert shown.shape == (32, 2 * 32 + GRID_GAP, 3)
        assert np.abs(shown[:, :32] - images[0, frame]).mean() < 12  # 256 colours of noise
    assert np.abs(frames[0] - frames[5]).mean() > 12


def test_an_unconditional_generator_in_grey(unconditional, tmp_path):
    for name in ("strip.png", "out.GIF"):
        out = tmp_path / name
        assert cli.main(["interpolate", f"--workdir={unconditional}", f"--out={out}", "--frames=3"]) == 0
    assert Image.open(tmp_path / "strip.png").size == (3 * 30 - GRID_GAP, 4 * 30 - GRID_GAP)
    assert Image.open(tmp_path / "strip.png").mode == "L"
    _, frames = frames_of(tmp_path / "out.GIF")
    own = sampled(load_sampler(unconditional), [0] * 8)
    np.testing.assert_allclose(frames[0][:, :28, 0], own[0, ..., 0], atol=1)  # grey levels fit in a palette
    np.testing.assert_allclose(frames[2][:, -28:, 0], own[7, ..., 0], atol=1)


@pytest.mark.parametrize(
    "run, given, named",
    [
        ("cgan", ["--out=a.jpg"], "a.jpg: choose a name"),
        ("cgan", ["--out=a.png", "--grades=0"], "--grades=0"),
        ("cgan", ["--out=a.png", "--grades=0,5"], "--grades=0,5"),
        ("cgan", ["--out=a.png", "--grade=1", "--grades=0,4"], "--grade and --grades"),
        ("cgan", ["--out=a.png", "--step=4"], "step 4"),
        ("cgan", ["--out=folder.png"], "folder.png: is a folder"),
        ("cgan", ["--out=file/a.png", "--rows=1"], "under file"),
        ("dcgan", ["--out=a.gif", "--grade=1"], "dcgan28 is unconditional"),
        ("dcgan", ["--out=a.gif", "--grades=0,4"], "dcgan28 is unconditional"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    workdir, unconditional, tmp_path, monkeypatch, capsys, run, given, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("content")
    assert cli.main(["interpolate", f"--workdir={workdir if run == 'cgan' else unconditional}", *given]) == 2
    message = capsys.readouterr().err.strip()
    assert named in message and "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
