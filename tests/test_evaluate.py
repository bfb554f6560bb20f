"""`evaluate`: what evaluation.json holds, and that it repeats itself."""

import dataclasses
import functools
import io
import json
import re
import shutil

import made_run
import numpy as np
import pytest
from PIL import Image

from idrid_jax import cli
from idrid_jax.data import cache
from idrid_jax.data.prepare import prepare
from idrid_jax.data.preprocess import preprocess
from idrid_jax.data.release import GRADES
from idrid_jax.errors import UserError
from idrid_jax.evaluation import augmentation_leak, downsample, evaluate, grader, quality, spectra, usefulness
from idrid_jax.evaluation.features import pretrained, trained_grader
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.image_quality import psnr, ssim
from idrid_jax.generation import sampling
from idrid_jax.images import to_float
from idrid_jax.models import build_networks
from idrid_jax.training import augment
from idrid_jax.training.checkpoint import read_run

REFERENCES = ("held_out_real", "mean_image", "nearest_to_generated", "nearest_to_held_out", "within_generated",
              "within_training")
QUICK = grader.Budget(steps=3, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def quick_grader():
    with pytest.MonkeyPatch.context() as patch:
        defaults = trained_grader.train.__kwdefaults__
        patch.setattr(trained_grader.train, "__kwdefaults__", defaults | {"budget": QUICK})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(made_run.write_release(folder / "made up"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def workdir(folder, manifest):
    changes = {"augment.mode": "fixed", "augment.p": 0.5}
    return made_run.make_run(folder / "run", manifest, steps=(3, 5), batch_size=16, **changes)


@pytest.fixture(scope="module")
def result(workdir):
    return evaluate.evaluate(workdir)


@pytest.fixture(scope="module")
def training(manifest):
    return cache.load(manifest, "train", size=32, channels=3, crop="field_of_view")


def test_the_keys_of_the_issue_hold_finite_numbers(workdir, result):
    written = json.loads((workdir / evaluate.NAME).read_text())
    assert written == result
    rows = written["quality"]
    for row in ("generated", *REFERENCES):
        assert np.isfinite(rows[row]["ssim"]) and np.isfinite(rows[row]["psnr"]), row
        assert -1 <= rows[row]["ssim"] <= 1
    assert rows["images"] == {"generated": sum(made_run.TRAIN), "training": sum(made_run.TRAIN),
                                 "held_out": sum(made_run.TEST)}


def test_a_leak_of_augmentation_is_looked_for_where_there_was_some(workdir, result, training):
    leaked = result["augmentation_leak"]
    assert set(leaked["statistics"]) == set(augmentation_leak.CAPTIONS) and isinstance(leaked["verdict"], str)
    assert all(0 <= found["p"] <= 1 and 0 <= found["share"] <= 1 for found in leaked["statistics"].values())
    strengths = augment.strengths_from_config(read_run(workdir)[0].config)
    shown = evaluate._augmented(training.images, strengths, 4, 0)
    assert shown.shape == training.images.shape and shown.dtype == np.uint8
    assert (shown != training.images).any(axis=(1, 2, 3)).all()


def test_what_was_measured_is_written_with_it(manifest, result):
    assert result["run"] == {
        "network": "cgan32", "step": 5, "kimg": 5 * 16 / 1000, "chosen": "the newest checkpoint", "last_step": 5, "seed": 0,
        "statistics": "auto", "batch_statistics": "none", "release": "made up",
        "fingerprint": manifest.fingerprint,
        "size": 32, "channels": 3, "crop": "field_of_view"}


def test_by_grade_where_there_are_grades(folder, manifest, result):
    assert list(result["quality"]["by_grade"]) == list(GRADES)
    for count, rows in zip(made_run.TRAIN, result["quality"]["by_grade"].values()):
        assert rows["generated"]["images"] == rows["generated"]["against"] == count  # the training split's proportions
        assert np.isfinite(rows["generated"]["ssim"])
    unconditional = evaluate.evaluate(made_run.make_run(folder / "dcgan", manifest, network="dcgan28"), count=4)
    assert "by_grade" not in unconditional["quality"] and unconditional["quality"]["generated"]["images"] == 4
    assert unconditional["run"]["channels"] == 1


def test_the_numbers_are_those_of_the_images_that_sample_draws(workdir, manifest, training):
    """One plain loop over pairs of one generated image each, on pixels preprocessed anew."""
    result = evaluate.evaluate(workdir, count=2, seed=3)
    grades = training.grades[np.random.default_rng(3).permutation(len(training.grades))[:2]]
    generated = np.stack(list(sampling.load_sampler(workdir).images(grades, seed=3))) / np.float32(255)
    real = np.stack([preprocess(p.source.read(), p.id, size=32, channels=3, crop="field_of_view")
                     for p in manifest.grading["train"]]) / np.float32(255)
    pairs = [(x, y) for x in generated for y in real]
    x, y = (np.stack(side) for side in zip(*pairs))
    assert result["quality"]["generated"]["ssim"] == pytest.approx(float(np.mean(ssim(x, y))), abs=1e-5)
    assert result["quality"]["generated"]["psnr"] == pytest.approx(float(np.mean(psnr(x, y))), abs=1e-3)


def test_the_same_again_and_another_seed_or_step_differs(workdir, result):
    assert evaluate.evaluate(workdir) == result
    assert evaluate.evaluate(workdir, seed=1)["quality"]["generated"] != result["quality"]["generated"]
    older = evaluate.evaluate(workdir, step=3)
    assert older["run"]["step"] == 3 and older["quality"]["generated"] != result["quality"]["generated"]
    for reference in ("held_out_real", "mean_image", "within_training", "nearest_to_held_out"):
        assert older["quality"][reference] == result["quality"][reference]  # of real images alone


def test_at_fewer_pixels_beside_a_run_of_smaller_images(workdir, manifest, result, capsys):
    (workdir / evaluate.PAIRS).write_bytes(b"of the images' own size")
    before = (workdir / evaluate.NAME).read_bytes()
    assert cli.main(["evaluate", "--workdir", str(workdir), "--pixels=28", "--count=3"]) == 0
    told = capsys.readouterr().out
    assert "32x32x3, field_of_view, compared at 28x28" in told and "evaluation_28.json" in told
    small = json.loads((workdir / "evaluation_28.json").read_text())
    assert small["run"] == result["run"] | {"pixels": 28}
    assert not small.keys() & {"memorization", "membership", "augmentation_leak", "usefulness"} and "grading" in small
    assert (workdir / evaluate.NAME).read_bytes() == before
    assert (workdir / evaluate.PAIRS).read_bytes() == b"of the images' own size"
    split = cache.load(manifest, "train", size=28, channels=3, crop="field_of_view")
    grades = split.grades[np.random.default_rng(0).permutation(len(split.grades))[:3]]
    drawn = downsample.smaller(np.stack(list(sampling.load_sampler(workdir).images(grades, seed=0))), 28)
    none = np.asarray(split.images[:0]), split.grades[:0]
    wanted = quality.measure(drawn, grades, np.asarray(split.images), split.grades, *none)
    for row in ("generated", "mean_image"):
        assert small["quality"][row]["ssim"] == pytest.approx(wanted[row]["ssim"]), row


def test_made_smaller_as_photographs_are():
    """Their finest frequencies: means of squares would leave 0.4 dB more."""
    photographs = [made_run.photograph(seed, 1024, 1536) for seed in range(4)]
    noise = np.random.default_rng(0).integers(-40, 40, (1024, 1536, 1))
    made = lambda size: np.stack([
        preprocess(_png(np.asarray(Image.open(io.BytesIO(one)), int) + noise), "it", size=size, channels=3,
                   crop="field_of_view") for one in photographs])  # fmt: skip
    finest = lambda images: spectra.radial_spectrum(images)[:, -8:].mean()
    assert abs(finest(downsample.smaller(made(128), 32)) - finest(made(32))) < 0.2
    grey = downsample.smaller(made(128)[..., :1], 32)
    np.testing.assert_array_equal(grey, downsample.smaller(made(128), 32)[..., :1])


def _png(image):
    file = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("pixels", "size", "says"), [
    (28, 28, "--pixels 28: the images are of 28 a side; none are smaller, leave it out"),
    (27, 64, "--pixels 27: the images are of 64 a side; give 28 to 63, or leave it out"),
    (64, 64, "give 28 to 63"),
    (-1, 32, "give 28 to 31"),
])  # fmt: skip
def test_pixels_that_cannot_be(pixels, size, says):
    with pytest.raises(UserError, match=re.escape(says)):
        downsample.check_pixels(pixels, size)


def test_a_table_of_every_row(result):
    text = quality.table(result["quality"])
    for caption in quality.CAPTIONS.values():
        assert caption in text
    assert all(grade in text for grade in GRADES) and "thesis's own" not in text


def test_the_release_of_the_run_counts_not_the_latest(folder, manifest, workdir, result):
    other = prepare(made_run.write_release(folder / "other", train=(1, 1, 1, 1, 1)), folder / "data", tfds=False)[0]
    assert other.fingerprint != manifest.fingerprint
    assert evaluate.evaluate(workdir)["run"] == result["run"]


def test_a_release_that_is_no_longer_prepared_is_one_line_and_can_be_named(folder, manifest, workdir, result):
    moved = folder / "run, data gone"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["data_dir"] = str(folder / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    (moved / evaluate.NAME).unlink()
    says = f"made up \\({manifest.fingerprint[:12]}\\).*prepare --release PATH.*--data_dir"
    with pytest.raises(UserError, match=says) as caught:
        evaluate.evaluate(moved)
    assert "\n" not in str(caught.value) and not (moved / evaluate.NAME).exists()
    assert evaluate.evaluate(moved, data_dir=folder / "data") == result


def test_a_release_without_held_out_photographs_is_measured_without_them(folder):
    manifest = prepare(made_run.write_release(folder / "no test", test=(0,) * 5), folder / "data, no test",
                       tfds=False)[0]
    result = evaluate.evaluate(made_run.make_run(folder / "run, no test", manifest))
    assert result["quality"]["held_out_real"]["ssim"] is None and "missing" in result["quality"]["held_out_real"]
    assert np.isfinite(result["quality"]["generated"]["ssim"])
    assert quality.table(result["quality"])


def test_usefulness_is_measured_when_asked_for(workdir, tmp_path, monkeypatch, capsys):
    """By the command: a cGAN's images by grade, with a budget of a few updates."""
    monkeypatch.setattr(grader, "Budget", functools.partial(dataclasses.replace, QUICK))
    assert cli.main(["evaluate", "--workdir", str(workdir), "--usefulness=2", "--weights="]) == 0
    out, err = capsys.readouterr()
    written = json.loads((workdir / evaluate.NAME).read_text())["usefulness"]
    assert written["arms"].keys() == usefulness.ARMS.keys() - {"filtered"} and written["seeds"] == 2
    assert written["budget"] == vars(QUICK)  # none of 400 updates, which take minutes
    assert len(written["arms"]["real"]["kappa"]["by_seed"]) == 2
    assert np.sum(written["arms"]["balanced"]["confusion"]) == 2 * sum(made_run.TEST)
    assert f"Usefulness: {written['verdict']}." in out and "] usefulness: real photographs, 2 seeds" in err
    stages = [line.split("]")[0][1:].split("/") for line in err.splitlines() if line.startswith("[")]
    assert [int(done) for done, _ in stages] == list(range(1, len(stages) + 1)) and stages[-1][1] == str(len(stages))
    assert evaluate.evaluate(workdir)["usefulness"] == written  # of the same images it is not lost
    assert "usefulness" not in evaluate.evaluate(workdir, seed=1)


def test_an_unconditional_generator_s_use_is_told_missing(workdir, monkeypatch):
    sampler = sampling.load_sampler(workdir)
    plain = dataclasses.replace(sampler.network, conditional=False)
    monkeypatch.setattr(type(sampler), "network", plain)
    found = evaluate._usefulness(
        sampler, None, None, None, seed=0, seeds=1, keep_share=0, edema=False, side=64, tell=print
    )
    assert found == {"missing": "cgan32 is unconditional: its images have no grades to learn from"}


def test_copies_and_membership_are_told(workdir, result, manifest, capsys):
    """A made-up run: its untrained generator draws noise, its untrained discriminator knows nobody."""
    if sum(made_run.TEST) < 10:
        assert result["memorization"] == {"missing": f"{sum(made_run.TEST)} held-out images; it takes at least 10"}
        assert "held-out" in result["membership"]["missing"]
    else:
        assert result["memorization"]["verdict"].startswith("no sign") and (workdir / evaluate.PAIRS).stat().st_size
        assert 0 <= result["membership"]["auc"] <= 1


def test_the_discriminator_s_scores_are_its_logits(workdir, training):
    """Also where the last batch is not full."""
    record, state = read_run(workdir, step=5)
    _, discriminator = build_networks(record.config)
    few = training.subset(np.arange(7))
    members, others, untrained = evaluate._scores(workdir, 5, training, few)
    assert len(untrained) == evaluate.UNTRAINED and all(len(u[0]) == len(members) and len(u[1]) == 7 for u in untrained)
    assert not np.allclose(untrained[0][1], untrained[1][1]) and not np.allclose(untrained[0][1], others)
    wanted = discriminator.eval(state.d.params, state.d.stats, to_float(np.asarray(few.images)), few.grades)
    np.testing.assert_allclose(others, wanted, atol=1e-5)
    np.testing.assert_allclose(members[:7], wanted, atol=1e-5)
    assert members.shape == training.grades.shape


def test_features_of_networks_from_files_measure_too(workdir, monkeypatch, capsys):
    plain = FeatureExtractor("brightness:12345678 (trained on nothing)", lambda images: images.mean((1, 2)).astype(np.float32))
    monkeypatch.setattr(pretrained, "load", lambda path: {"a.npz": plain}[path])
    assert cli.main(["evaluate", "--workdir", str(workdir), "--weights=a.npz"]) == 0
    written = json.loads((workdir / evaluate.NAME).read_text())["closeness"]
    assert written["networks"][-1] == plain.name and len(written["networks"]) == 2
    assert np.isfinite(written["rows"]["generated"]["features"][plain.name]["kid"]["value"])
    assert f"features: {plain.name}" in capsys.readouterr().out


def test_a_file_that_holds_no_network_leaves_the_other_measures(workdir, result, tmp_path, capsys):
    other, damaged = tmp_path / "run", tmp_path / "damaged.npz"
    shutil.copytree(workdir, other)
    damaged.write_text("no archive")
    assert cli.main(["evaluate", "--workdir", str(other), f"--weights={damaged}"]) == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(told) == 1 and str(damaged) in told[0] and told[0].endswith("measuring without it")
    written = json.loads((other / evaluate.NAME).read_text())
    assert list(written["skipped_weights"]) == ["damaged.npz"] and written["closeness"] == result["closeness"]
    assert "Not measured by damaged.npz: cannot be read" in out and "written to" in out


def test_installed_weights_are_done_without_where_they_are_not(monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    networks, left_out = evaluate._trained_elsewhere([pretrained.IMAGENET])
    assert not networks and "not installed" in left_out[pretrained.IMAGENET]
    assert capsys.readouterr().err.endswith("measuring without it\n")


def test_a_disk_that_is_full_at_the_end_takes_the_file_alone(workdir, monkeypatch, capsys):
    before = (workdir / evaluate.NAME).read_bytes()

    def full(path, text):
        raise UserError(f"cannot write under {path}: No space left on device")

    monkeypatch.setattr(evaluate.atomic, "write_text", full)
    assert cli.main(["evaluate", "--workdir", str(workdir), "--seed=1", "--weights="]) == 2
    out, err = capsys.readouterr()
    assert "generated x training" in out and "written to" not in out and (workdir / evaluate.NAME).read_bytes() == before
    assert err.splitlines()[-1].endswith("No space left on device")


def test_a_network_sees_the_same_images_once(training):
    seen = []
    network = evaluate._remembered(FeatureExtractor("n", lambda images: seen.append(len(images)) or images.mean((1, 2))))
    first = network.extract(training.images)
    assert network.extract(np.array(training.images)) is first and seen == [len(training.images)]
    assert len(network.extract(training.images[:3])) == 3 and network.name == "n"


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--weights=nowhere.npz", "nowhere.npz: no file of weights is there"),
        ("--keep_share=0.5", "--keep_share is of the graders that --usefulness N trains"),
        ("--edema", "--edema is of the graders"),
        ("--grader_pixels=32", "--grader_pixels is of the graders"),
        ("--batch_statistics=walking", "batch_statistics"),
        ("--pixels=32", "--pixels 32: the images are of 32 a side; give 28 to 31, or leave it out"),
        ("--pixels=28 --usefulness=1", "--usefulness is measured at the images' own size: leave --pixels out"),
    ],
)
def test_mistakes_are_one_line_and_lose_nothing(workdir, result, capsys, flag, says):
    before = (workdir / evaluate.NAME).read_bytes()
    assert cli.main(["evaluate", "--workdir", str(workdir), *flag.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and (workdir / evaluate.NAME).read_bytes() == before
