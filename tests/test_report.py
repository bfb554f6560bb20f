"""`report`: the page says what the run's files say, needs nothing else, and is whole or not there."""

import base64
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
from idrid_jax.data.layout import GRADES
from idrid_jax.data.prepare import prepare
from idrid_jax.evaluation import closeness, memorization, quality, report, usefulness
from idrid_jax.evaluation import evaluate as evaluation_run
from idrid_jax.evaluation.report import figures, page
from idrid_jax.evaluation.report.markup import Markup, joined, table, tag
from idrid_jax.generation import sampling
from idrid_jax.images import image_grid

NETWORKS = ["random-v1 (untrained)", "grader <1>"]
BY_FEATURES, BY_PIXELS = (list(closeness.MEASURES[kind]) for kind in ("features", "pixels"))
HEADINGS = closeness.MEASURES["features"] | closeness.MEASURES["pixels"]
SECTIONS = ["verdicts", "samples", "training", "closeness", "copies", "usefulness", "reading", "data", "model"]
CONFUSION = [[11, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]]
VOID = {"img", "meta", "br", "hr"}


class Page(html.parser.HTMLParser):
    """What a browser would find. figures: {title: its numbers}; cells: rows of every table; loads: what would be
    fetched; balanced: whether every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.balanced, self.loads, self.tags, self.ids = [], True, [], [], []
        self.words, self.figures, self.pictures, self.cells, self.rows = [], {}, [], [], []
        self._title = None
        self.feed(text)
        self.close()
        self.balanced &= not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.tags.append((name, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if name == "img":
            self.pictures.append((attributes.get("alt"), attributes["src"]))
        self.loads += [attributes[key] for key in ("src", "href", "xlink:href", "data", "srcset") if key in attributes]
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
        if name not in VOID:
            self.open.append((name, attributes.get("class", "")))

    def handle_endtag(self, name):
        self.balanced &= bool(self.open) and self.open.pop()[0] == name

    def handle_data(self, data):
        names = [name for name, _ in self.open]
        if names[-1:] == ["style"]:
            self.loads += re.findall(r"url\([^)]*\)|@import[^;]*", data)
            return
        self.words.append(data)
        if "svg" in names and names[-1] == "title":
            self._title = data
        if self.open and self.open[-1] == ("text", "number"):
            self.figures.setdefault(self._title, []).append(data)
        if "td" in names or "th" in names:
            self.rows[-1][-1] += data


def entry(value, features, spread=0.1):
    return {"value": value, "interval": [value - spread, value + spread], "features": features}


def rows(rng):
    """Every value its own, so that a number on the page tells where it comes from."""
    some = lambda: float(rng.uniform(0.2, 3))
    return {
        row: {
            "images": 9, "against": 15,
            **{name: entry(some(), "none (pixels)") for name in BY_PIXELS},
            "features": {n: {name: entry(some(), n) for name in BY_FEATURES} for n in NETWORKS},
        }
        for row in closeness.ROWS
    }  # fmt: skip


def evaluation(training, *, step=3, conditional=True):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 5, 40)
    read = {arm: rng.integers(0, 5, (3, 40)) for arm in usefulness.ARMS}
    result = {
        "quality": {
            **{key: {"ssim": float(rng.uniform()), "psnr": float(rng.uniform(10, 30)), "images": 9, "against": 15}
               for key in quality.CAPTIONS},
            "collapse": {"ssim_excess": 0.3, "threshold": 0.1, "collapsed": True,
                         "verdict": "collapsed: excess is +0.300"},
        },
        "closeness": {"seed": 4, "resamples": 200, "images": {"generated": 9, "training": 15, "held_out": 6},
                      "given": {}, "networks": NETWORKS, "rows": rows(rng)},
        "memorization": {
            **{name: {"images": 12, "authentic": share,
                      "similarity": {"0.5": a, "0.9": a + 0.1, "0.99": a + 0.2, "1": 0.97}}
               for name, share, a in (("generated", 0.75, 0.5), ("held_out", 0.25, 0.6))},
            "distances": {name: {key: {"nearest": {str(q): q + a for q in memorization.QUANTILES}, "authentic": 0.125 + a}
                                 for key, a in (("generated", b), ("held_out", b + 0.25))} | {"c_t": 4.5 - b}
                          for name, b in ((memorization.STRUCTURE, 0.1), (NETWORKS[0], 0.3))},
            "c_t": 1.0, "copy_rate": 0.2, "threshold": 0.05, "verdict": "copies: 20.0% are nearer, more than 5%",
            "pairs": [{"generated": i, "training": training.ids[i], "index": i, "similarity": 0.9 - i / 10}
                      for i in range(3)],
        },
        "membership": {"auc": 0.71, "interval": [0.66, 0.77], "untrained_auc": 0.55, "verdict": "it gives them away"},
        "usefulness": usefulness.compare(truth, read, resamples=50)
        | {"seeds": 3, "budget": {"steps": 7, "batch_size": 4}},
        "grading": {
            "generated": {"images": 9, "kappa": 0.456, "interval": [0.21, 0.67], "confusion": CONFUSION,
                          "recall": dict(zip(GRADES, (1.0, 0.5, 0.0, None, 0.25)))},
            "held_out": {"missing": "6 held-out images; it takes at least 10"},
            "verdict": "a grader of photographs reads the asked grades (kappa 0.46, 0.21 to 0.67)",
        },
        "run": {"network": "cgan32", "seed": 4, "step": step, "kimg": step * 0.016, "statistics": "auto",
               "chosen": "the snapshot with the lowest kid_imagenet while training"},
    }  # fmt: skip
    if conditional:
        result["closeness"]["by_grade"] = {grade: rows(rng) for grade in GRADES}
        result["quality"]["by_grade"] = {grade: {"collapse": {"collapsed": grade == "MILD"}} for grade in GRADES}
    else:
        result["usefulness"] = {"missing": "no grades"}
        del result["grading"]
    return result


def write_stats(workdir):
    kimgs = [0.016, 0.048, 0.08]
    lines = [{"step": i, "kimg": k, "seconds": 1.0, "images_per_s": rate, "loss_d": 1.0 + i, "loss_g": 2.0,
              "d_real": 0.5, "d_fake_before": 0.4, "d_fake_after": float("nan"), "grad_norm_d": 1.0, "grad_norm_g": 1.0}
             for i, k, rate in zip((1, 3, 5), kimgs, (0.0, 100.0, 300.0))]  # fmt: skip
    lines[1] |= {"kid_imagenet": 0.5, "kid_grader": 0.25, "copy_rate": 0.1, "rejected": 1.0, "ssim_excess": 0.05, "brand_new": 1.0}
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
def workdir(folder, manifest, training):
    made = made_run.make_run(folder / "a<b>&c", manifest, steps=(3, 5), batch_size=16)
    (made / evaluation_run.NAME).write_text(json.dumps(evaluation(training)))
    write_stats(made)
    both = np.concatenate([np.full((3, 32, 32, 3), 7, np.uint8), training.images[:3]])
    image_grid(both, 3).save(made / evaluation_run.PAIRS)
    return made


@pytest.fixture(scope="module")
def unconditional(folder, manifest, training):
    made = made_run.make_run(folder / "dcgan", manifest, network="dcgan28", batch_size=16)
    (made / evaluation_run.NAME).write_text(json.dumps(evaluation(training, conditional=False)))
    return made


@pytest.fixture(scope="module")
def written(workdir):
    assert report.write([workdir]) == workdir / "report.html"
    return (workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def shown(written):
    return Page(written)


@pytest.fixture(scope="module")
def result(workdir):
    return json.loads((workdir / evaluation_run.NAME).read_text())


@pytest.fixture(scope="module")
def side_by_side(folder, workdir, unconditional):
    out = folder / "both.html"
    assert cli.main(["report", f"--workdir={workdir}", "--workdir", str(unconditional), "--out", str(out)]) == 0
    return Page(out.read_text())


def pixels(picture):
    data = picture[1].removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# -- the page

def test_sections_in_their_order_and_links_that_lead_to_them(shown):
    assert [name for name in shown.ids if name in SECTIONS] == SECTIONS
    assert {load for load in shown.loads if load.startswith("#")} == {f"#{name}" for name in SECTIONS[1:]}


def test_nothing_is_loaded_and_every_tag_is_closed(shown, side_by_side):
    for one in (shown, side_by_side):
        assert one.balanced
        assert all(load.startswith(("data:image/png;base64,", "#")) for load in one.loads)
        assert not {"script", "link", "iframe", "object", "b>&c"} & {name for name, _ in one.tags}
        policy = {"http-equiv": "Content-Security-Policy", "content": page.ALONE}
        assert policy in [attributes for name, attributes in one.tags if name == "meta"]
        assert not [a for _, a in one.tags if any(key.startswith("on") for key in a)]


def test_a_page_that_loads_or_leaves_open_would_be_seen():
    assert Page('<p><img src="http://x/y.png"></p>').loads == ["http://x/y.png"]
    assert Page("<style>a { background: url(x.png) }</style>").loads == ["url(x.png)"]
    assert not Page("<p><b>x</p></b>").balanced and not Page("<p>").balanced


def test_names_are_escaped(written, workdir):
    assert "a<b>&c" not in written and "a&lt;b&gt;&amp;c" in written and "grader &lt;1&gt;" in written


def test_the_same_again_is_the_same_file(workdir, written):
    report.write([workdir])
    assert (workdir / "report.html").read_text() == written


# -- verdicts

def test_the_verdicts_are_those_of_the_evaluation(shown, result):
    kid = result["closeness"]["rows"]["generated"]["features"][NETWORKS[0]]["kid"]
    said = shown.text
    assert "told apart from real photographs" in said
    assert f"{NETWORKS[0]}: {kid['value'] * 1000:.1f} ({kid['interval'][0] * 1000:.1f} to" in said
    assert "copies" in said and "20.0% are nearer, more than 5%." in said
    assert "it gives them away" in said and "AUC of 0.71 (0.66 to 0.77)" in said and "reach 0.55" in said
    verdict = result["usefulness"]["verdict"]
    assert verdict.partition(": ")[2][1:] in said
    assert "Excess is +0.300. Collapsed within a grade: MILD." in said
    tones = [a["class"] for name, a in shown.tags if name == "div" and a.get("class", "").startswith("answer")]
    assert [tones[i] for i in (1, 2, 4, 5)] == ["answer bad"] * 2 + ["answer open", "answer bad"]


def test_close_images_are_not_told_apart(workdir, result, folder):
    other = copied(workdir, folder / "close")
    near = json.loads(json.dumps(result))
    rows = near["closeness"]["rows"]
    rows["generated"] = json.loads(json.dumps(rows["held_out_real"]))
    (other / evaluation_run.NAME).write_text(json.dumps(near))
    assert "not told apart by these measures" in shown_of(other).text
    rows["generated"]["spectrum"]["interval"] = [rows["held_out_real"]["spectrum"]["interval"][1] + 0.1, 99.0]
    (other / evaluation_run.NAME).write_text(json.dumps(near))
    assert "told apart from real photographs" in shown_of(other).text


def copied(workdir, to, *, draws=False):
    """Another run of the same; without checkpoints, so that nothing is drawn, where a test does not look at images."""
    shutil.copytree(workdir, to, ignore=shutil.ignore_patterns("report.html", *([] if draws else ["checkpoints"])))
    return to


def without_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")
    return workdir


def shown_of(workdir, **options):
    return Page(report.write([workdir], **options).read_text())


# -- samples

def test_images_by_grade_are_those_of_the_evaluated_checkpoint_beside_photographs(shown, workdir, training):
    grades = np.repeat(np.arange(5), 10)
    drawn = list(sampling.load_sampler(workdir, 3).images(grades, seed=4))
    newest = list(sampling.load_sampler(workdir, 5).images(grades[:1], seed=4))
    assert not np.array_equal(drawn[0], newest[0])
    for grade, name in enumerate(GRADES):
        found = [pixels(p) for p in shown.pictures if p[0] == f"generated {grade} {name}"]
        np.testing.assert_array_equal(found, [image for image, g in zip(drawn, grades) if g == grade])
        real = [pixels(p) for p in shown.pictures if p[0] == f"photograph {grade} {name}"]
        np.testing.assert_array_equal(real, training.images[training.grades == grade])
    assert "real (there are 5)" in shown.text


def test_an_unconditional_run_shows_thirty_and_says_what_it_cannot(unconditional):
    found = shown_of(unconditional)
    assert len([p for p in found.pictures if p[0] == "generated"]) == 30
    assert len([p for p in found.pictures if p[0] == "photograph"]) == sum(made_run.TRAIN)  # there are no more
    assert pixels(found.pictures[0]).shape == (28, 28)
    assert "By grade" not in found.text and "Not measured: no grades." in found.text


def test_a_checkpoint_that_is_gone_is_told(workdir, result, folder):
    other = copied(workdir, folder / "gone", draws=True)
    (other / evaluation_run.NAME).write_text(json.dumps(result | {"run": result["run"] | {"step": 4}}))
    assert "The evaluated checkpoint (step 4) is gone: these images are of step 5." in shown_of(other).text
    shutil.rmtree(other / "checkpoints")
    found = shown_of(other)
    assert "no checkpoint" in found.text and not [p for p in found.pictures if p[0].startswith("generated 0")]


def test_large_images_are_averaged_down():
    from idrid_jax.evaluation.report.markup import image

    large = np.random.default_rng(0).integers(0, 256, (1024, 1024, 1), np.uint8)
    found = Page(image(large, "large"))
    assert pixels(found.pictures[0]).shape == (256, 256)
    assert pixels(found.pictures[0])[0, 0] == round(float(large[:4, :4].mean()))


# -- training

def test_the_snapshot_that_was_taken_is_marked_where_it_lies(written, shown):
    assert "Evaluated: step 3 (0.048 kimg), of a run of 0.08 kimg." in shown.text
    assert "How it was chosen: the snapshot with the lowest kid_imagenet while training." in shown.text
    losses = written[written.index("<title>Losses") : written.index("<title>Discriminator")]
    taken = float(re.search(r'<line x1="([\d.]+)"[^>]*class="taken"', losses)[1])
    curve = [float(x) for x in re.search(r'd="M([^"]*)" class="dash0"', losses)[1].replace("L", " ").split()]
    assert taken == pytest.approx(curve[2], abs=0.06)  # x of the second point, which is step 3
    assert curve[1] > curve[3] > curve[5]  # losses of 2, 4 and 6 rise: y falls


def test_measures_of_snapshots_have_their_panel_also_unknown_ones(shown):
    for title in ("KID to photographs held back", "Copied", "SSIM among images, less among real", "brand_new"):
        assert title in shown.text
    assert "rejected" not in shown.text and "Diversity" not in shown.text  # that one was not measured
    assert "200 (median while training)" in shown.text  # not the 0 of the step that compiled


# -- closeness

def numbers(rows, name, network=None):
    of = lambda row: (row["features"][network] if network else row)[name]
    factor, decimals = 1000 if name == "kid" else 1, HEADINGS[name][2]
    text = lambda value: format(value * factor, f".{decimals}f")
    return [f"{text(e['value'])} [{text(e['interval'][0])}, {text(e['interval'][1])}]" for e in map(of, rows.values())]


def test_every_measure_with_interval_and_references(shown, result):
    found = result["closeness"]["rows"]
    for network in NETWORKS:
        for name in BY_FEATURES:
            title = f"{HEADINGS[name][0]}, {network}"
            assert shown.figures[title][:6] == numbers(found, name, network), title
    for name in BY_PIXELS:
        assert shown.figures[f"{HEADINGS[name][0]}, pixels"] == numbers(found, name)


def test_by_grade_in_a_table(shown, result):
    cell = lambda e, f, d: f"{e['value'] * f:.{d}f} {e['interval'][0] * f:.{d}f} to {e['interval'][1] * f:.{d}f}"
    for grade in GRADES:
        of_grade = result["closeness"]["by_grade"][grade]
        pair = [of_grade[row]["features"][NETWORKS[1]]["kid"] for row in ("generated", "held_out_real")]
        assert ["KID x1000", *(cell(e, 1000, 1) for e in pair)] in shown.rows
        pair = [of_grade[row]["spectrum"] for row in ("generated", "held_out_real")]
        assert ["spectrum dB", *(cell(e, 1, 1) for e in pair)] in shown.rows


def test_psnr_and_ssim_are_those_of_the_protocol(shown, result):
    for key, caption in quality.CAPTIONS.items():
        assert [caption, f"{result['quality'][key]['ssim']:.3f} / {result['quality'][key]['psnr']:.2f}"] in shown.rows


def test_a_measure_without_images_says_why(workdir, result, folder):
    other = copied(workdir, folder / "lacking")
    lacking = json.loads(json.dumps(result))
    why = {"value": None, "interval": None, "missing": "1 generated image; it takes at least 2"}
    lacking["closeness"]["by_grade"]["MILD"]["generated"]["ms_ssim"] = why
    lacking["closeness"]["rows"]["held_out_real"]["features"] = {}
    (other / evaluation_run.NAME).write_text(json.dumps(lacking))
    found = shown_of(other)
    assert "– 1 generated image; it takes at least 2" in found.text
    assert found.figures[f"KID x1000, {NETWORKS[0]}"][2] == "–"


# -- copies

def test_images_that_lie_too_near_are_no_clean_copies(workdir, result, folder):
    other = copied(workdir, folder / "near")
    near = json.loads(json.dumps(result))
    near["memorization"] |= {"copy_rate": 0.0, "c_t": -4.0, "verdict": "nearer to the training photographs: 0.0%"}
    near["skipped_weights"] = {"a.npz": "a network of another kind"}
    (other / evaluation_run.NAME).write_text(json.dumps(near))
    shown = shown_of(other)
    tones = [a["class"] for name, a in shown.tags if name == "div" and a.get("class", "").startswith("answer")]
    assert tones[1] == "answer open" and "Nearer" not in shown.text and "nearer to the training" in shown.text
    assert "Not measured: by a.npz: a network of another kind." in shown.text


def test_pairs_are_those_that_were_measured(shown, training):
    found = [(alt, pixels(picture)) for picture in shown.pictures for alt in [picture[0]]]
    drawn = [image for alt, image in found if alt == "generated image"]
    real = [image for alt, image in found if alt.startswith("training photograph")]
    assert all((image == 7).all() for image in drawn) and len(drawn) == 3
    np.testing.assert_array_equal(real, training.images[:3])
    assert f"0.80 {training.ids[1]}" in shown.text
    assert ["generated", "0.50", "0.60", "0.70", "0.97", "75%"] in shown.rows
    assert ["held-out real", "0.60", "0.70", "0.80", "0.97", "25%"] in shown.rows


def test_distances_stand_beside_those_of_held_out_photographs(shown):
    assert ["generated", "0.11", "0.20", "0.60", "1.00", "22%", "+4.4"] in shown.rows
    assert ["held-out real", "0.56", "0.65", "1.05", "1.45", "68%", ""] in shown.rows


def test_pairs_of_another_evaluation_are_not_shown(workdir, training, folder):
    other = copied(workdir, folder / "stale")
    both = np.concatenate([np.full((3, 32, 32, 3), 7, np.uint8), training.images[1:4]])
    image_grid(both, 3).save(other / evaluation_run.PAIRS)
    found = shown_of(other)
    assert "goes with another evaluation" in found.text
    assert not [alt for alt, _ in found.pictures if alt == "generated image"]


# -- usefulness

def test_usefulness_by_seed_and_confusion(written, shown, result):
    found = result["usefulness"]
    one = lambda value, d, sign: f"{round(value, d) + 0.0:{sign}.{d}f}"  # no minus before zero
    text = lambda e, *how: f"{one(e['mean'], *how)} [{', '.join(one(end, *how) for end in e['interval'])}]"
    assert shown.figures["Quadratic kappa"] == [text(arm["kappa"], 2, "") for arm in found["arms"].values()]
    assert shown.figures["Kappa less that of the better way without synthetic images"] == [
        text(arm["kappa"], 3, "+") for arm in found["differences"].values()
    ]
    kappas = written[written.index("<title>Quadratic") : written.index("<title>Balanced")]
    assert kappas.count('class="seed"') == 3 * len(usefulness.ARMS)
    for arm in found["arms"].values():
        for grade, line in enumerate(arm["confusion"]):
            recall = list(arm["recall"].values())[grade]
            assert [str(grade), *map(str, line), f"{recall:.2f}"] in shown.rows


def test_grades_that_are_read_in_the_images(shown):
    assert "a grader of photographs reads the asked grades Kappa 0.46, 0.21 to 0.67." in shown.text
    assert shown.figures["Quadratic kappa of grades read"] == ["0.46 [0.21, 0.67]"]
    assert "Not measured: 6 held-out images; it takes at least 10." in shown.text
    for grade, recall in enumerate(("1.00", "0.50", "0.00", "–", "0.25")):
        assert [str(grade), *map(str, CONFUSION[grade]), recall] in shown.rows


# -- cards

def test_the_data_card(shown, manifest):
    for grade, name in enumerate(GRADES):
        assert [f"{grade} {name}", str(made_run.TRAIN[grade]), str(made_run.TEST[grade])] in shown.rows
    assert "CC BY 4.0" in shown.text and "doi:10.3390/data3030025" in shown.text
    assert manifest.fingerprint[:16] in shown.text and f"Left out: {len(manifest.exclusions)}" in shown.text


def test_exclusions_are_listed_with_their_reasons(folder):
    release = made_run.write_release(folder / "twice")
    train = next(release.glob("B*/1*/a*"))
    first, *_, last = sorted(train.iterdir())
    shutil.copy(first, last)  # one photograph with two grades
    manifest = prepare(release, folder / "data, twice", tfds=False)[0]
    assert manifest.exclusions
    found = shown_of(without_checkpoints(made_run.make_run(folder / "run, twice", manifest)))
    assert all(line in found.text for line in manifest.exclusions)


def test_a_phantom_is_called_one_and_idrid_s_licence_is_not_its(folder):
    release = made_run.write_release(folder / "unnamed")
    (release / "README.txt").write_text(phantom.NOTICE.format(seed=1))
    manifest = prepare(release, folder / "data, phantom", tfds=False)[0]
    found = shown_of(without_checkpoints(made_run.make_run(folder / "run, phantom", manifest)))
    assert "a phantom, no photographs" in found.text and "CC BY" not in found.text


def test_the_model_card(shown, workdir):
    record = json.loads((workdir / "config.json").read_text())
    assert "generator 1,382,077, discriminator 212,987" in shown.text
    assert ["revision", record["revision"] or "not recorded"] in shown.rows
    assert any(row[0] == "versions" and f"jax {record['versions']['jax']}" in row[1] for row in shown.rows)
    assert ["batch_size", "16"] in shown.rows and not any(row[0] == "data.data_dir" for row in shown.rows)
    assert "Not for diagnosis." in shown.text and "nobody has graded the images" in shown.text


def test_no_folder_of_this_machine_is_published(written, folder, manifest):
    known = written.replace("idrid-jax evaluate --workdir", "")
    assert str(folder) not in known and str(manifest.release) not in known


# -- several, and none

def test_several_runs_are_side_by_side(side_by_side, result):
    names = ["a<b>&c", "dcgan"]
    assert all(name in side_by_side.text for name in names)
    kid = side_by_side.figures[f"KID x1000, {NETWORKS[0]}"]
    assert kid[:12] == 2 * numbers(result["closeness"]["rows"], "kid", NETWORKS[0])[:6]  # other data, other references
    heads = [row for row in side_by_side.rows if row and row[-2:] == ["\u2060" + name for name in names]]
    assert heads
    assert len([p for p in side_by_side.pictures if p[0] == "generated"]) == 30


def test_runs_on_the_same_data_share_their_references(folder, workdir, result):
    other = copied(workdir, folder / "same data")
    out = report.write([workdir, other], folder / "same.html")
    kid = numbers(result["closeness"]["rows"], "kid", NETWORKS[0])
    assert Page(out.read_text()).figures[f"KID x1000, {NETWORKS[0]}"][:8] == 2 * kid[:2] + kid[2:]


def test_a_run_that_was_never_evaluated_says_what_to_run(folder, manifest, capsys):
    made = made_run.make_run(folder / "fresh", manifest)
    assert cli.main(["report", f"--workdir={made}"]) == 0
    found = Page((made / "report.html").read_text())
    assert f"idrid-jax evaluate --workdir {made} --usefulness 5" in found.text
    assert found.text.count(f"Run idrid-jax evaluate --workdir {made}") >= 3
    assert "Shown: step 3" in found.text and "not evaluated" in found.text
    assert [name for name in found.ids if name in SECTIONS] == SECTIONS and found.balanced


def test_what_an_older_version_wrote_is_told(workdir, result, folder):
    other = copied(workdir, folder / "older")
    old = {"features": "f", "generated": {"kid": entry(1.0, "f")}}
    (other / evaluation_run.NAME).write_text(json.dumps({"closeness": old, "run": result["run"]}))
    found = shown_of(other)
    assert "Closeness was measured by an older version. Run" in found.text
    assert "An older version of idrid-jax wrote evaluation.json" in found.text


def test_a_release_that_is_gone_leaves_the_rest(workdir, folder):
    other = copied(workdir, folder / "no release", draws=True)
    record = json.loads((other / "config.json").read_text())
    record["data"]["data_dir"] = str(folder / "nowhere")
    (other / "config.json").write_text(json.dumps(record))
    found = shown_of(other)
    assert "name where it is prepared with --data_dir" in found.text
    assert "exclusions and groups are not known" in found.text
    assert not [p for p in found.pictures if p[0].startswith("photograph")]
    assert len([p for p in found.pictures if p[0].startswith("generated 0")]) == 10
    assert ["all", str(sum(made_run.TRAIN)), str(sum(made_run.TEST))] in found.rows
    found = shown_of(without_checkpoints(other), data_dir=str(folder / "data"))
    assert "exclusions and groups are not known" not in found.text and "name where" not in found.text


# -- bad input

def refused(capsys, *arguments):
    assert cli.main(["report", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("idrid-jax: ")]) == 1, said
    return said[-1]


def test_no_run_or_no_workdir(capsys, tmp_path):
    assert f"{tmp_path}: no run is there" in refused(capsys, f"--workdir={tmp_path}")
    assert not list(tmp_path.iterdir())
    assert "--workdir is missing" in refused(capsys)


@pytest.mark.parametrize("content", ['{"run": ', "[]", '{"memorization": 3}', '{"quality": {"by_grade": {"MILD": 1}}}', "\x00\xff",
                                     '{"closeness": {"rows": [1]}}'])
def test_a_damaged_evaluation_is_named(capsys, workdir, tmp_path, content):
    other = copied(workdir, tmp_path / "damaged")
    (other / evaluation_run.NAME).write_bytes(content.encode("latin1"))
    said = refused(capsys, f"--workdir={other}")
    assert str(other / evaluation_run.NAME) in said and "evaluate --workdir" in said
    assert not (other / "report.html").exists()


def test_where_it_cannot_be_written(capsys, workdir, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(capsys, f"--workdir={workdir}", f"--out={tmp_path / 'file' / 'x.html'}")
    assert f"cannot write under {tmp_path / 'file'}" in said
    assert "is a folder" in refused(capsys, f"--workdir={workdir}", f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_several_need_a_file_and_differ(capsys, workdir, unconditional):
    both = f"--workdir={workdir}", f"--workdir={unconditional}"
    assert "--out" in refused(capsys, *both)
    assert "twice" in refused(capsys, both[0], both[0], "--out=x.html")


def test_half_a_report_is_never_there(workdir, written, monkeypatch):
    monkeypatch.setattr(page, "html", lambda runs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write([workdir])
    assert (workdir / "report.html").read_text() == written


# -- parts

def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "<b>", tag("b", 1 < 2), None, [2, Markup("&amp;")], class_='"') == (
        '<p class="&quot;">&lt;b&gt;<b>True</b>2&amp;</p>')
    assert joined(["a", ["b"]]) == "ab" and "colspan" in table(None, [["x"], [1, 2]])


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (0.94, 1.002), (-1e-9, 1e-9), (1e5, 3e6)])
def test_ticks_are_round_and_inside(low, high):
    found = figures.ticks(low, high, 4)
    assert 1 <= len(found) <= 9 and all(low - 1e-12 <= t <= high * (1 + 1e-12) for t in found)
    assert np.ptp(np.diff(found)) < 1e-9 * (high - low) + 1e-15 if len(found) > 2 else True


def test_a_reference_off_the_scale_is_an_arrow_and_does_not_stretch_it():
    near = [figures.Row("a", 1.0, (0.5, 1.5), 0), figures.Row("b", 2.0, (1.5, 2.5), reference=True)]
    far = [*near, figures.Row("c", 1000.0, (900, 1100), reference=True, outside=True)]
    one, two = (figures.intervals("t", rows, decimals=0) for rows in (near, far))
    assert one.count("<circle") == two.count("<circle") == 2 and "beyond" not in one and two.count("beyond") == 1
    centre = lambda drawn: [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
    assert centre(one)[0] < centre(one)[1] and centre(two)[0] < centre(two)[1]
    assert centre(two)[1] - centre(two)[0] > 20  # of 360: still told apart


def test_zero_has_no_sign():
    assert figures.fixed(-0.0001, 2) == "0.00" and figures.fixed(-0.0001, 2, signed=True) == "+0.00"
    assert figures.fixed(-0.01, 2) == "-0.01"


def test_long_curves_are_averaged_and_peaks_cut():
    points = [(float(x), 1.0 + (x == 500) * 1e6) for x in range(4000)]
    drawn = figures.curves("t", [figures.Curve(points, 0)])
    assert drawn.count("L") <= figures.POINTS and "1e+" not in Page(drawn).text
