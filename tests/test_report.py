"""The report shows the numbers and images of a run's files, loads nothing, and is written completely or not at all."""

import base64
import copy
import html.parser
import io
import json
import re
import shutil

import made_run
import numpy as np
import pytest
from PIL import Image

from idrid_jax import cli
from idrid_jax.data import cache, phantom
from idrid_jax.data.folds import held_out_folds
from idrid_jax.data.layout import GRADES
from idrid_jax.data.prepare import prepare
from idrid_jax.evaluation import closeness, memorization, quality, report
from idrid_jax.evaluation.report import plots, render
from idrid_jax.generation import sampling
from idrid_jax.images import image_grid
from idrid_jax.training.run_dir import RunDir

NETWORKS = ["efficientnet-lite0:57934424 (trained on ImageNet)", "grader <1>"]
OF_FEATURES, OF_PIXELS = (closeness.MEASURES[kind] for kind in ("features", "pixels"))
CONFUSION = [[11, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]]
VOID = {"img", "meta"}


class Page(html.parser.HTMLParser):
    """A parsed page.

    text: all text. ids: in order. tags: (name, attributes). rows: the cells of each table row. loads: every reference.
    images: (alt, pixels). numbers: {title of a plot: the numbers in it}. tones: the verdicts' tones, in order.
    balanced: whether every tag is closed in the right order.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.loads, self.images, self.numbers = [], [], [], [], {}
        self.balanced, self._open, self._words, self._title = True, [], [], None
        self.feed(text)
        self.close()
        self.balanced &= not self._open
        self.text = " ".join(" ".join(self._words).split())
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        classes = [attributes.get("class", "") for name, attributes in self.tags if name == "div"]
        self.tones = [name.removeprefix("answer ") for name in classes if name.startswith("answer")]

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.tags.append((name, attributes))
        self.loads += [attributes[key] for key in ("src", "href", "xlink:href", "data", "srcset") if key in attributes]
        if name == "img":
            data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
            self.images.append((attributes["alt"], np.asarray(Image.open(io.BytesIO(data)))))
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
        if name not in VOID:
            self._open.append((name, attributes.get("class", "")))

    def handle_startendtag(self, name, attributes):  # <line/>
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name):
        self.balanced &= bool(self._open) and self._open.pop()[0] == name

    def handle_data(self, data):
        names = [name for name, _ in self._open]
        if names[-1:] == ["style"]:
            self.loads += re.findall(r"url\([^)]*\)|@import[^;]*", data)
            return
        self._words.append(data)
        if "svg" in names and names[-1] == "title":
            self._title = data
        if self._open and self._open[-1] == ("text", "number"):
            self.numbers.setdefault(self._title, []).append(data)
        if "td" in names or "th" in names:
            self.rows[-1][-1] += data

    def pictures(self, alt):
        return [pixels for name, pixels in self.images if name == alt]


# --- a run with an evaluation


def entry(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1]}


def closeness_rows(rng):
    """Every value is different, so that a number on the page identifies its entry."""
    return {
        row: {name: entry(rng.uniform(0.2, 3)) for name in OF_PIXELS}
        | {"features": {n: {name: entry(rng.uniform(0.2, 3)) for name in OF_FEATURES} for n in NETWORKS}}
        for row in closeness.ROWS
    }


def evaluation(training, conditional=True):
    rng = np.random.default_rng(5)
    images = lambda share, a: {"authentic": share, "similarity": {"0.5": a, "0.9": a + 0.1, "0.99": a + 0.2, "1": 0.97}}
    distances = lambda a: {"nearest": {str(q): q + a for q in memorization.QUANTILES}, "authentic": 0.125 + a}
    result = {
        "run": {"seed": 4, "step": 3, "statistics": "auto", "chosen": "the snapshot with the lowest kid_imagenet"},
        "quality": {
            **{key: {"ssim": rng.uniform(), "psnr": rng.uniform(10, 30)} for key in quality.CAPTIONS},
            "collapse": {"collapsed": False, "verdict": "no collapse: excess is +0.050"},
            "by_grade": {grade: {"collapse": {"collapsed": grade == "MILD"}} for grade in GRADES},
        },
        "closeness": {
            "images": {"generated": 9, "training": 15, "held_out": 6}, "networks": NETWORKS,
            "rows": closeness_rows(rng),
            "by_grade": {grade: closeness_rows(rng) for grade in GRADES},
        },
        "memorization": {
            "generated": images(0.75, 0.5), "held_out": images(0.25, 0.6),
            "distances": {NETWORKS[0]: {"generated": distances(0.1), "held_out": distances(0.35), "c_t": 4.4}},
            "c_t": 1.0, "copy_rate": 0.2, "threshold": 0.05, "verdict": "copies: 20.0% are nearer",
            "pairs": [{"training": training.ids[i], "similarity": 0.9 - i / 10} for i in range(3)],
        },
        "membership": {"auc": 0.71, "interval": [0.66, 0.77], "untrained_auc": 0.55, "verdict": "members are revealed"},
        "usefulness": made_run.made_usefulness(rng),
        "grading": {
            "generated": {"qwk": 0.456, "qwk_interval": [0.21, 0.67], "confusion": CONFUSION,
                          "recall": dict(zip(GRADES, (1.0, 0.5, 0.0, None, 0.25)))},
            "held_out": {"missing": "6 held-out images, fewer than 10"},
            "verdict": "grades agree (kappa 0.46, 0.21 to 0.67)", "grader": "a <grader> of 32 pixels", "pixels": 32,
            "saved": {"generated": {"qwk": 0.789, "qwk_interval": [0.71, 0.83]}},
        },
    }  # fmt: skip
    if not conditional:
        result["usefulness"] = {"missing": "no grades"}
        for name, key in (("quality", "by_grade"), ("closeness", "by_grade")):
            del result[name][key]
        del result["grading"]
    return result


def write_evaluation(workdir, result):
    RunDir(workdir).evaluation().write_text(json.dumps(result))


def write_stats(workdir):
    common = {"loss_g": 2.0, "d_real": 0.5, "d_fake_before": 0.4, "d_fake_after": float("nan"), "grad_norm_d": 1.0}
    rates = {1: (0.016, 0.0), 3: (0.048, 100.0), 5: (0.08, 300.0)}
    lines = [common | {"step": s, "kimg": k, "images_per_s": r, "loss_d": 1.0 + s} for s, (k, r) in rates.items()]
    lines[1] |= {"kid_imagenet": 0.5, "copy_rate": 0.1, "rejected": 1.0, "ssim_excess": 0.05, "brand_new": 1.0}
    (workdir / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "ki')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(made_run.write_release(folder / "made up"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def training(manifest):
    return cache.load(manifest, "train", size=32, channels=3, crop="field_of_view")


@pytest.fixture(scope="module")
def result(training):
    return evaluation(training)


@pytest.fixture(scope="module")
def workdir(folder, manifest, training, result):
    made = made_run.make_run(folder / "a<b>&c", manifest, steps=(3, 5), batch_size=16)
    write_evaluation(made, result)
    write_stats(made)
    both = np.concatenate([np.full((3, 32, 32, 3), 7, np.uint8), training.images[:3]])
    image_grid(both, 3).save(RunDir(made).memorization_pairs)
    return made


@pytest.fixture(scope="module")
def unconditional(folder, manifest, training):
    made = made_run.make_run(folder / "dcgan", manifest, network="dcgan28", batch_size=16)
    write_evaluation(made, evaluation(training, conditional=False))
    return made


@pytest.fixture(scope="module")
def source(workdir):
    assert report.write([workdir]) == workdir / "report.html"
    return (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


@pytest.fixture(scope="module")
def two_runs(folder, workdir, unconditional):
    out = folder / "both.html"
    assert cli.main(["report", f"--workdir={workdir}", "--workdir", str(unconditional), "--out", str(out)]) == 0
    return Page(out.read_text())


@pytest.fixture
def without_checkpoints(workdir, tmp_path):
    """A copy of the run that cannot generate images, which is all that takes time."""
    to = tmp_path / "copy"
    return shutil.copytree(workdir, to, ignore=shutil.ignore_patterns("report.html", "checkpoints"))


def report_on(workdir, *others, **options):
    return Page(report.write([workdir, *others], workdir / "report.html", **options).read_text())


# --- the page


def test_sections_and_links(page):
    assert [name for name in page.ids if name in render.SECTIONS] == list(render.SECTIONS)
    assert {link for link in page.loads if link.startswith("#")} == {f"#{name}" for name in render.SECTIONS}


def test_page_is_well_formed_and_loads_nothing(page, two_runs):
    for one in (page, two_runs):
        assert one.balanced
        assert all(link.startswith(("data:image/png;base64,", "#")) for link in one.loads)
        assert not {"script", "link", "iframe", "object"} & {name for name, _ in one.tags}
        assert not [attributes for _, attributes in one.tags if any(key.startswith("on") for key in attributes)]
        policies = [a["content"] for _, a in one.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
        plots_on_page = [attributes for name, attributes in one.tags if attributes.get("class") == "figure"]
        assert all(attributes["role"] == "img" for attributes in plots_on_page) and len(one.numbers) > 10


def test_parser_notices_what_the_tests_above_exclude():
    assert Page('<p><a href="http://x/y"></a></p>').loads == ["http://x/y"]
    assert Page("<style>a { background: url(x.png) }</style>").loads == ["url(x.png)"]
    assert not Page("<p><b>x</p></b>").balanced and not Page("<p>").balanced


def test_text_from_files_is_escaped(source, without_checkpoints, result):
    assert "a<b>&c" not in source and "a&lt;b&gt;&amp;c" in source and "grader &lt;1&gt;" in source
    harmful = copy.deepcopy(result)
    attack = "<script>alert(1)</script>"
    harmful["skipped_weights"] = {attack: attack}
    harmful["closeness"]["networks"] = [attack]
    harmful["memorization"]["verdict"] = harmful["run"]["chosen"] = attack
    write_evaluation(without_checkpoints, harmful)
    with (without_checkpoints / "stats.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 9, "kimg": 0.1, attack: 1.0}) + "\n")
    written = report.write([without_checkpoints]).read_text()
    assert "<script" not in written and written.count("&lt;script") >= 5


def test_report_is_reproducible_and_never_partial(workdir, source, monkeypatch):
    report.write([workdir])
    assert (workdir / "report.html").read_text() == source
    monkeypatch.setattr(render, "page", lambda runs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write([workdir])
    assert (workdir / "report.html").read_text() == source


def test_no_path_of_this_machine_is_published(source, folder, manifest):
    without_commands = source.replace("idrid-jax evaluate --workdir", "")
    assert str(folder) not in without_commands and str(manifest.release) not in without_commands


# --- verdicts


def test_verdicts_are_those_of_the_evaluation(page, result):
    assert page.tones == ["bad", "bad", "bad", page.tones[3], "open", "bad"]  # closeness to collapse, within a grade
    kid = result["closeness"]["rows"]["generated"]["features"][NETWORKS[0]]["kid"]
    assert f"{NETWORKS[0]}: {kid['value'] * 1000:.1f} ({kid['interval'][0] * 1000:.1f} to" in page.text
    assert "20.0% are nearer." in page.text and "members are revealed" in page.text
    assert "0.71 (0.66 to 0.77)" in page.text and "0.55" in page.text
    assert "Kappa 0.46, 0.21 to 0.67." in page.text and "within a grade: MILD" in page.text


def test_verdicts_on_better_runs(without_checkpoints, result):
    better = copy.deepcopy(result)
    rows = better["closeness"]["rows"]
    rows["generated"] = copy.deepcopy(rows["held_out_real"])
    better["memorization"] |= {"copy_rate": 0.0, "verdict": "no sign of copying: 0.0%"}
    better["membership"]["interval"] = [0.5, 0.6]
    better["grading"]["generated"]["qwk_interval"] = [-0.1, 0.2]
    better["quality"]["by_grade"]["MILD"]["collapse"]["collapsed"] = False
    better["usefulness"]["sizes"]["full"]["verdict"] = "a gain: kappa +0.1"
    write_evaluation(without_checkpoints, better)
    assert report_on(without_checkpoints).tones == ["good", "good", "good", "good", "bad", "good"]
    rows["generated"]["spectrum"]["interval"] = [rows["held_out_real"]["spectrum"]["interval"][1] + 0.1, 99.0]
    better["memorization"]["c_t"] = memorization.C_T_LIMIT - 1  # near as a set, without copies
    better["usefulness"]["sizes"]["full"]["verdict"] = "a loss: kappa -0.1"
    write_evaluation(without_checkpoints, better)
    assert report_on(without_checkpoints).tones == ["bad", "open", "good", "bad", "bad", "good"]


def test_a_network_that_the_generator_was_trained_against_gives_no_verdict(without_checkpoints, result):
    flattered = copy.deepcopy(result)
    rows = flattered["closeness"]["rows"]
    rows["generated"]["spectrum"] = rows["held_out_real"]["spectrum"]
    rows["generated"]["features"][NETWORKS[1]] = rows["held_out_real"]["features"][NETWORKS[1]]
    for against, tone in (([NETWORKS[0]], "good"), ([NETWORKS[1]], "bad"), (NETWORKS, "bad")):
        flattered["closeness"]["trained_against"] = against
        rows["generated"]["features"][NETWORKS[0]]["kid"] = entry(99)
        write_evaluation(without_checkpoints, flattered)
        page = report_on(without_checkpoints)
        assert page.tones[0] == tone and f"trained against {against[0]}" in page.text


def test_a_run_without_evaluation_names_the_command(folder, manifest):
    made = made_run.make_run(folder / "fresh", manifest)
    assert cli.main(["report", f"--workdir={made}"]) == 0
    page = Page((made / "report.html").read_text())
    assert page.tones == ["none"] * 6 and page.balanced
    assert f"idrid-jax evaluate --workdir {made} --usefulness 5" in page.text
    assert page.text.count(f"idrid-jax evaluate --workdir {made}") >= 8
    assert "not evaluated: step 3" in page.text and len(page.pictures("generated 0 NO_DR")) == 10


# --- sections


def test_samples_are_of_the_evaluated_checkpoint_with_photographs_of_each_grade(page, workdir, training):
    grades = np.repeat(np.arange(5), 10)
    generated = np.stack(list(sampling.load_sampler(workdir, 3).images(grades, seed=4)))
    for grade, name in enumerate(GRADES):
        np.testing.assert_array_equal(page.pictures(f"generated {grade} {name}"), generated[grades == grade])
        real = training.images[training.grades == grade]
        np.testing.assert_array_equal(page.pictures(f"photograph {grade} {name}"), real)


def test_samples_of_another_step_if_the_evaluated_one_is_gone(workdir, result, tmp_path):
    other = shutil.copytree(workdir, tmp_path / "gone")
    write_evaluation(other, result | {"run": result["run"] | {"step": 4}})
    page = report_on(other)
    assert "step 4) is gone" in page.text and "of step 5" in page.text and len(page.images) > 50


def test_large_images_are_averaged_down():
    large = np.random.default_rng(0).integers(0, 256, (1024, 1024, 1), np.uint8)
    embedded = render._embed(large)
    ((_, pixels),) = Page(f'<img src="{embedded["source"]}" alt="">').images
    assert pixels.shape == (256, 256) and embedded["width"] == 256
    assert pixels[0, 0] == round(float(large[:4, :4].mean()))


def test_training_curves_and_the_evaluated_step(page, source):
    assert "step 3 (0.048 kimg), of a run of 0.08 kimg" in page.text
    assert "the snapshot with the lowest kid_imagenet" in page.text
    losses = source[source.index("<title>Losses") : source.index("<title>Sigmoid")]
    evaluated = float(re.search(r'<line x1="([\d.]+)"[^>]*class="evaluated"', losses)[1])
    curve = [float(x) for x in re.search(r'd="M([^"]*)" class="dash0"', losses)[1].replace("L", " ").split()]
    assert evaluated == pytest.approx(curve[2], abs=0.06)  # x of the second point, which is step 3
    assert curve[1] > curve[3] > curve[5]  # losses of 2, 4 and 6 rise, so y decreases
    assert "brand_new" in page.text and "rejected" not in page.text and "Diversity" not in page.text
    assert "200 (median" in page.text  # the 0 of the step that compiled does not count


def plotted(rows, name, network=None):
    """The numbers of a plot of closeness rows."""
    measures = OF_FEATURES | OF_PIXELS
    factor, decimals = 1000 if name == "kid" else 1, measures[name][2]
    entries = [(row["features"][network] if network else row)[name] for row in rows.values()]
    number = lambda value: format(value * factor, f"z.{decimals}f")
    return [f"{number(e['value'])} [{number(e['interval'][0])}, {number(e['interval'][1])}]" for e in entries]


def test_closeness_of_every_metric_with_references(page, result):
    rows = result["closeness"]["rows"]
    for network in NETWORKS:
        for name, (heading, *_) in OF_FEATURES.items():
            assert page.numbers[f"{heading}, {network}"][: len(rows)] == plotted(rows, name, network)
    for name, (heading, *_) in OF_PIXELS.items():
        assert page.numbers[f"{heading}, pixels"] == plotted(rows, name)
    for key, caption in quality.CAPTIONS.items():
        found = result["quality"][key]
        assert [caption, f"{found['ssim']:.3f} / {found['psnr']:.2f}"] in page.rows


def test_closeness_by_grade(page, result):
    cell = lambda e, f: "{:.1f} {:.1f} to {:.1f}".format(*(x * f for x in (e["value"], *e["interval"])))
    for rows in result["closeness"]["by_grade"].values():
        generated, real = rows["generated"], rows["held_out_real"]
        kids = [cell(row["features"][NETWORKS[1]]["kid"], 1000) for row in (generated, real)]
        assert [OF_FEATURES["kid"][0], *kids] in page.rows
        assert [OF_PIXELS["spectrum"][0], cell(generated["spectrum"], 1), cell(real["spectrum"], 1)] in page.rows


def test_missing_values_have_their_reason(without_checkpoints, result):
    lacking = copy.deepcopy(result)
    reason = "1 generated image, fewer than 2"
    lacking["closeness"]["by_grade"]["MILD"]["generated"]["ms_ssim"] = {"value": None, "missing": reason}
    lacking["closeness"]["rows"]["held_out_real"]["features"] = {}
    lacking["skipped_weights"] = {"a.npz": "an unknown network"}
    write_evaluation(without_checkpoints, lacking)
    page = report_on(without_checkpoints)
    assert f"– {reason}" in page.text and "a.npz: an unknown network" in page.text
    assert page.numbers[f"{OF_FEATURES['kid'][0]}, {NETWORKS[0]}"][2] == "–"


def test_memorization_pairs_and_quantiles(page, training):
    assert (np.stack(page.pictures("generated image")) == 7).all() and len(page.pictures("generated image")) == 3
    for i in range(3):
        (picture,) = page.pictures(f"training photograph {training.ids[i]}")
        np.testing.assert_array_equal(picture, training.images[i])
    assert f"0.80 {training.ids[1]}" in page.text
    assert ["generated", "0.50", "0.60", "0.70", "0.97", "75%"] in page.rows
    assert ["held-out real", "0.60", "0.70", "0.80", "0.97", "25%"] in page.rows
    assert ["generated", "0.11", "0.20", "0.60", "1.00", "22%", "+4.4"] in page.rows
    assert ["held-out real", "0.36", "0.45", "0.85", "1.25", "48%", ""] in page.rows


def test_memorization_pairs_of_another_evaluation_are_not_shown(without_checkpoints, training):
    both = np.concatenate([np.full((3, 32, 32, 3), 7, np.uint8), training.images[1:4]])
    image_grid(both, 3).save(RunDir(without_checkpoints).memorization_pairs)
    page = report_on(without_checkpoints)
    assert "belongs to another evaluation" in page.text and not page.pictures("generated image")


def test_usefulness_and_grading(page, source, result):
    shown = lambda e, how: f"{e['mean']:{how}} [{', '.join(f'{bound:{how}}' for bound in e['interval'])}]"
    for size, found in result["usefulness"]["sizes"].items():
        arms, differences = found["arms"], found["differences"]
        assert page.numbers[f"Quadratic kappa, {size} size"] == [shown(arm["qwk"], "z.2f") for arm in arms.values()]
        (title,) = (
            title for title in page.numbers if title.startswith("Kappa minus") and title.endswith(f"{size} size")
        )
        assert page.numbers[title] == [shown(arm["qwk"], "+z.3f") for arm in differences.values()]
        assert all([grade, verdict] in page.rows for grade, verdict in found["by_grade"].items())
        kappas = source[
            source.index(f"<title>Quadratic kappa, {size}") : source.index(f"<title>Balanced accuracy, {size}")
        ]
        assert kappas.count('class="seed"') == 3 * len(arms)
        for arm in arms.values():
            for grade, (counts, recall) in enumerate(zip(arm["confusion"], arm["recall"].values())):
                assert [str(grade), *map(str, counts), f"{recall['mean']:.2f}"] in page.rows
    assert "no measurable gain" in page.text and "With photographs at full size." in page.text
    assert "The grader: a <grader> of 32 pixels." in page.text
    assert [
        "0.46 [0.21, 0.67]",
        "0.79 [0.71, 0.83]",
    ] in page.numbers.values() and "6 held-out images, fewer than 10" in page.text
    for grade, recall in enumerate(("1.00", "0.50", "0.00", "–", "0.25")):
        assert [str(grade), *map(str, CONFUSION[grade]), recall] in page.rows


def test_data_card(page, manifest):
    for grade, name in enumerate(GRADES):
        assert [f"{grade} {name}", str(made_run.TRAIN[grade]), str(made_run.TEST[grade])] in page.rows
    assert "CC BY 4.0" in page.text and "doi:10.3390/data3030025" in page.text
    assert manifest.fingerprint[:16] in page.text


def test_data_cards_of_runs_with_and_without_a_held_out_fold(folder, manifest):
    fold = made_run.make_run(folder / "fold", manifest, steps=(), **{"data.held_out_fold": 1})
    official = made_run.make_run(folder / "official", manifest, steps=())
    held_out = held_out_folds(manifest) == 1
    grades = np.repeat([*range(5), *range(5)], made_run.TRAIN + made_run.TEST)
    counts = [[str(np.sum(grades[which] == grade)) for which in (~held_out, held_out)] for grade in range(5)]
    page = report_on(fold, official)
    for grade, name in enumerate(GRADES):
        assert [f"{grade} {name}", *counts[grade]] in page.rows
        assert [f"{grade} {name}", str(made_run.TRAIN[grade]), str(made_run.TEST[grade])] in page.rows
    assert "Data of fold" in page.text and "Data of official" in page.text
    assert "held out (fold 1)" in page.text and "held out (test)" in page.text


def test_data_cards_of_a_phantom_with_exclusions(folder, without_checkpoints, workdir):
    release = made_run.write_release(folder / "twice")
    (release / "README.txt").write_text(phantom.NOTICE.format(seed=1))
    first, *_, last = sorted(next(release.glob("B*/1*/a*")).iterdir())
    shutil.copy(first, last)  # one photograph with two grades
    manifest = prepare(release, folder / "data, twice", tfds=False)[0]
    assert manifest.exclusions
    page = report_on(made_run.make_run(folder / "run, twice", manifest, steps=()))
    assert all(line in page.text for line in manifest.exclusions)
    assert "a phantom, not photographs" in page.text and "CC BY" not in page.text


def test_model_card(page, workdir):
    record = json.loads((workdir / "config.json").read_text())
    assert "generator 1,382,077, discriminator 212,987" in page.text and "Not for diagnosis." in page.text
    assert ["revision", record["revision"] or "not recorded"] in page.rows
    assert any(row[0] == "versions" and f"jax {record['versions']['jax']}" in row[1] for row in page.rows)
    assert ["batch_size", "16"] in page.rows and not any(row[0] == "data.data_dir" for row in page.rows)


def test_a_release_that_is_no_longer_there(workdir, folder, tmp_path):
    other = shutil.copytree(workdir, tmp_path / "no release")
    record = json.loads((other / "config.json").read_text())
    record["data"]["data_dir"] = str(tmp_path / "nowhere")
    (other / "config.json").write_text(json.dumps(record))
    page = report_on(other)
    assert "--data_dir" in page.text and "Excluded:" not in page.text
    assert not [alt for alt, _ in page.images if alt.startswith("photograph")]
    assert len(page.pictures("generated 0 NO_DR")) == 10
    assert ["all", str(sum(made_run.TRAIN)), str(sum(made_run.TEST))] in page.rows
    shutil.rmtree(other / "checkpoints")
    page = report_on(other, data_dir=str(folder / "data"))
    assert "Excluded: 0" in page.text and "--data_dir" not in page.text and "no checkpoint" in page.text


# --- several runs


def test_runs_side_by_side(two_runs, result):
    names = ["a<b>&c", "dcgan"]
    kid = two_runs.numbers[f"{OF_FEATURES['kid'][0]}, {NETWORKS[0]}"]
    assert kid[:12] == 2 * plotted(result["closeness"]["rows"], "kid", NETWORKS[0])  # of other data: other references
    assert any(row[-2:] == ["\u2060" + name for name in names] for row in two_runs.rows)
    assert len(two_runs.tones) == 12
    pictures = two_runs.pictures("generated")  # of the unconditional run
    assert len(pictures) == 30 and pictures[0].shape == (28, 28)
    assert len(two_runs.pictures("photograph")) == sum(made_run.TRAIN)  # there are no more


def test_runs_on_the_same_data_share_their_references(workdir, without_checkpoints, result):
    page = report_on(without_checkpoints, shutil.copytree(without_checkpoints, without_checkpoints.parent / "same"))
    kid = plotted(result["closeness"]["rows"], "kid", NETWORKS[0])
    assert page.numbers[f"{OF_FEATURES['kid'][0]}, {NETWORKS[0]}"][:8] == 2 * kid[:2] + kid[2:]


# --- errors


def assert_refused(capsys, named, *arguments):
    assert cli.main(["report", *map(str, arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("idrid-jax: ")]
    assert len(errors) == 1 and str(named) in errors[0]


def test_bad_arguments_are_named(capsys, workdir, unconditional, tmp_path):
    assert_refused(capsys, tmp_path, f"--workdir={tmp_path}")
    assert_refused(capsys, "--workdir")
    assert_refused(capsys, "--out", f"--workdir={workdir}", f"--workdir={unconditional}")
    assert_refused(capsys, "--workdir", f"--workdir={workdir}", f"--workdir={workdir}", "--out=x.html")
    assert_refused(capsys, tmp_path, f"--workdir={workdir}", f"--out={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_file_is_named(capsys, without_checkpoints):
    (without_checkpoints / "file").touch()
    out = without_checkpoints / "file" / "x.html"
    assert_refused(capsys, out.parent, f"--workdir={without_checkpoints}", f"--out={out}")


@pytest.mark.parametrize("content", ['{"run": ', "[]", '{"memorization": 3}', '{"quality": {"by_grade": {"MILD": 1}}}',
                                     "\x00\xff", '{"closeness": {"rows": [1]}}'])  # fmt: skip
def test_a_damaged_evaluation_is_named(capsys, without_checkpoints, content):
    path = RunDir(without_checkpoints).evaluation()
    path.write_bytes(content.encode("latin1"))
    assert_refused(capsys, path, f"--workdir={without_checkpoints}")
    assert not (without_checkpoints / "report.html").exists()


# --- plots


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (0.94, 1.002), (-1e-9, 1e-9), (1e5, 3e6)])
def test_ticks_are_round_and_inside(low, high):
    found = plots.ticks(low, high, 4)
    assert 1 <= len(found) <= 9 and all(low - 1e-12 <= t <= high * (1 + 1e-12) for t in found)
    np.testing.assert_allclose(np.diff(found), np.diff(found)[0], rtol=1e-6)


def test_a_value_off_the_scale_is_an_arrow_and_does_not_extend_the_axis():
    near = [plots.Row("a", 1.0, (0.5, 1.5), 0), plots.Row("b", 2.0, (1.5, 2.5), reference=True)]
    far = [*near, plots.Row("c", 1000.0, (900, 1100), reference=True, off_scale=True)]
    marks = [row["mark"] for row in plots.interval_plot("t", far, decimals=0)["rows"]]
    assert [mark["arrow"] is None for mark in marks] == [True, True, False]
    assert marks[1]["x"] - marks[0]["x"] > 20  # of 360


def test_zero_has_no_minus():
    rows = [plots.Row("a", -0.0001)]
    numbers = [plots.interval_plot("t", rows, decimals=2, signed=s)["rows"][0]["number"] for s in (False, True)]
    assert numbers == ["0.00", "+0.00"]


def test_long_curves_are_averaged_and_peaks_cut():
    points = [(float(x), 1.0 + (x == 500) * 1e6) for x in range(4000)]
    plot = plots.curve_plot("t", [plots.Curve(points, 0)])
    assert len(plot["curves"][0]["points"]) <= plots.MAX_POINTS
    assert all("e+" not in label for _, label in plot["y_ticks"])
