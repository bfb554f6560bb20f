"""Sections on what the run is: its samples, its training, the data, the model."""

import math
import statistics

from idrid_jax import config as config_lib
from idrid_jax.data.layout import GRADES, SPLITS
from idrid_jax.evaluation.protocol import COLLAPSE
from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.gather import DRAWN, MADE_UP, Run
from idrid_jax.evaluation.report.markup import image, joined, swatch, table, tag

CURVES = (  # title, {key in stats.jsonl: caption}
    ("Losses", {"loss_d": "discriminator", "loss_g": "generator"}),
    (
        "Discriminator's mean probability of “real”",
        {"d_real": "D(x) of photographs", "d_fake_before": "D(G(z)) of images, before its update", "d_fake_after": "after"},
    ),
    ("Gradient norms", {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}),
)
MEASURES = {  # of a snapshot: (title, line across, what it tells)
    "kid": ("KID", None, "distance of features to real photographs; low is good"),
    "diversity": ("Diversity", None, "how unlike the images are, beside real ones"),
    "nearer": ("Nearer than held-out", None, "share of images nearer to a training photograph than held-out ones are"),
    "ssim_excess": ("SSIM among images, less among real ones", COLLAPSE, f"collapse above {COLLAPSE}"),
}
LOGGED = {"step", "kimg", "seconds", "images_per_s", "d_accuracy"} | {key for _, curves in CURVES for key in curves}
HIDDEN = ("data.data_dir", "data.release", "log.console")  # of this machine, not of the model
EXCLUSIONS = 40  # listed at most
CITATION = (
    "Porwal P., Pachade S., Kamble R., Kokare M., Deshmukh G., Sahasrabuddhe V., Meriaudeau F.: Indian Diabetic "
    "Retinopathy Image Dataset (IDRiD): A Database for Diabetic Retinopathy Screening Research. Data 2018, 3(3):25, "
    "doi:10.3390/data3030025. Data: IEEE DataPort, doi:10.21227/H25W98."
)


# -- samples


def samples_section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "Not picked: the first images of each grade that the evaluation's seed draws, beside photographs of the "
            "training set, taken evenly from it, in the same preparation and size.",
        )
    ]
    for colour, run in enumerate(runs):
        if len(runs) > 1:
            parts.append(tag("h3", swatch(colour), run.name))
        for name in ("samples", "release"):
            if name in run.notes:
                parts.append(tag("p", _sentence(run.notes[name]), class_="absent"))
        for caption, drawn, real in run.samples:
            title = caption or f"{len(drawn)} images of {run.config.network}, which knows no grades"
            parts.append(tag("h4", title))
            few = "" if len(real) in (0, len(drawn)) else f" (there are {len(real)})"
            columns = "five" if caption else "six"
            parts.append(
                tag(
                    "div",
                    _sheet(drawn, "generated", f"generated {caption}", columns),
                    _sheet(real, f"real{few}", f"photograph {caption}", columns) if len(real) else None,
                    class_="beside",
                )
            )
    return parts


def _sheet(images, title, alt, columns):
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", (image(pixels, alt.strip()) for pixels in images), class_=f"sheet {columns}"),
    )


def _sentence(text):
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


# -- training


def training_section(runs: list[Run]) -> list:
    several, parts = len(runs) > 1, []
    for colour, run in enumerate(runs):
        parts.append(tag("p", [swatch(colour), tag("b", run.name), ": "] if several else None, _taken(run)))
    panels = []
    for title, keys in CURVES:
        panels.append(_panel(runs, title, keys, keys_caption=True))
    measured = [key for run in runs for row in run.stats for key, value in row.items() if key not in LOGGED]
    measured = [key for key in MEASURES if key in measured] + sorted(set(measured) - set(MEASURES) - {"ssim_among", "ssim_gap"})  # fmt: skip
    for key in measured:
        title, line, tells = MEASURES.get(key, (key, None, ""))
        panels.append(_panel(runs, title, {key: ""}, line=line, tells=tells))
    panels = [panel for panel in panels if panel]
    if not panels:
        return [*parts, tag("p", "stats.jsonl holds no curves.", class_="absent")]
    hint = "kimg: thousands of real photographs shown to the discriminator. The upright line marks the snapshot that was "
    return [*parts, tag("div", panels, class_="panels"), tag("p", hint + "taken.", class_="hint")]


def _taken(run):
    """Which snapshot was taken, of which, and how it was chosen."""
    kimg = lambda step: f"{step * run.config.batch_size / 1000:g} kimg"
    if run.step is None:
        return "No checkpoint can be read."
    of = run.part("of")
    step = of.get("step", run.step)
    last = run.stats[-1]["step"] if run.stats else step
    text = f"Evaluated: step {step} ({kimg(step)})" if of else f"Shown: step {step} ({kimg(step)}), not evaluated"
    text += f", of a run of {kimg(last)}." if last != step else ", the last of the run."
    chosen = of.get("chosen")
    said = str(chosen) if isinstance(chosen, str) and chosen else ""
    return joined([text, f" How it was chosen: {said}." if said else ""])


def _panel(runs, title, keys, *, line=None, tells="", keys_caption=False):
    curves, marks = [], []
    for colour, run in enumerate(runs):
        for dash, key in enumerate(keys):
            points = [(float(row["kimg"]), float(row[key])) for row in run.stats if _finite(row.get(key))]
            curves.append(figures.Curve(points, colour, dash, dots=len(points) < 40 and len(keys) == 1))
        if run.step is not None and run.stats:
            step = run.part("of").get("step", run.step)
            marks.append((step * run.config.batch_size / 1000, colour, "taken" if len(runs) == 1 else ""))
    if not any(curve.points for curve in curves):
        return None
    legend = [tag("span", figures.key(dash), " ", caption) for dash, caption in enumerate(keys.values())]
    return tag(
        "figure",
        tag("figcaption", tag("b", title), f" {tells}" if tells else None),
        figures.curves(title, curves, marks=marks, line=line),
        tag("figcaption", legend, class_="legend") if keys_caption else None,
    )


def _finite(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# -- data


def data_section(runs: list[Run]) -> list:
    parts, seen = [], {}
    for run in runs:
        seen.setdefault(run.record["data"]["fingerprint"], []).append(run)
    for same in seen.values():
        if len(seen) > 1:
            parts.append(tag("h3", "Data of ", ", ".join(run.name for run in same)))
        parts += _data_card(next((run for run in same if run.manifest), same[0]))
    return parts


def _data_card(run):
    data, manifest = run.record["data"], run.manifest
    counts = data["counts"]["grading"]
    rows = [[f"{g} {name}", *(counts[split][g] for split in SPLITS)] for g, name in enumerate(GRADES)]
    rows.append(["all", *(sum(counts[split]) for split in SPLITS)])
    what = {
        MADE_UP: "A phantom: made-up photographs in IDRiD's layout, drawn by a program, of no patient. Nothing in this "
        "report says anything about diabetic retinopathy, and IDRiD's licence and citation do not apply.",
        DRAWN: "Synthetic images in IDRiD's layout that another generator drew, no photographs of patients; see the "
        "README.txt of that release for its source.",
        "": "Photographs of the retina in IDRiD's layout, graded for diabetic retinopathy on the ICDR scale. ",
    }[run.kind]
    parts = [
        tag("p", what),
        tag(
            "p",
            "Release ", tag("b", data["name"]), ", fingerprint of what was used ",
            tag("code", data["fingerprint"][:16]), ".",
        ),
        table(["grade", "training", "held out (test)"], rows, caption="Photographs after exclusions"),
        tag(
            "p",
            "The generator saw the training split alone; the held-out split is read by the evaluation and chooses "
            "nothing.",
        ),
    ]  # fmt: skip
    if manifest is None:
        parts.append(tag("p", "The release is no longer prepared here: exclusions and groups are not known.", class_="absent"))
    else:
        shown = manifest.exclusions[:EXCLUSIONS]
        more = len(manifest.exclusions) - len(shown)
        parts.append(tag("h4", f"Left out: {len(manifest.exclusions)}"))
        parts.append(tag("ul", (tag("li", line) for line in shown), tag("li", f"and {more} more") if more else None) if shown else tag("p", "Nothing."))  # fmt: skip
        parts.append(tag("h4", f"The same photograph more than once: {len(manifest.groups)} groups"))
        text = "Kept together when the training split is divided into folds: " if manifest.groups else "None among those kept."
        parts.append(tag("p", text, "; ".join(" = ".join(group) for group in manifest.groups)))
    if not run.kind:
        parts.append(tag("h4", "Licence and citation"))
        parts.append(
            tag(
                "p",
                "IDRiD is (c) P. Porwal, S. Pachade, M. Kokare, under the Creative Commons Attribution 4.0 International "
                "licence (CC BY 4.0). The photographs on this page come from it, cut to the field of view and made "
                "smaller. Who publishes images or results cites:",
            )
        )
        parts.append(tag("p", CITATION, class_="citation"))
    return parts


# -- model


def model_section(runs: list[Run]) -> list:
    head = ["", *([swatch(i), run.name] if len(runs) > 1 else "" for i, run in enumerate(runs))]
    facts = [_facts(run) for run in runs]
    rows = [[key, *(fact.get(key, "") for fact in facts)] for key in dict.fromkeys(k for fact in facts for k in fact)]
    flat = [dict(config_lib.fields(run.config)) for run in runs]
    usual = dict(config_lib.fields(config_lib.default_config()))
    fields = [
        name
        for name in dict.fromkeys(name for one in flat for name in one)
        if name not in HIDDEN and any(one.get(name) != usual.get(name) for one in flat)
    ]
    show = lambda name, value: str(value).rstrip("/").rpartition("/")[2] if name == "init_from" else str(value)
    changed = [[tag("code", name), *(show(name, one.get(name, "")) for one in flat)] for name in fields]
    return [
        table(head, rows),
        tag("h4", "Configuration, where it differs from the defaults"),
        table(head, changed) if changed else tag("p", "Nowhere."),
        _readings(runs),
        tag("h4", "Limits"),
        tag(
            "ul",
            tag("li", tag("b", "Not for diagnosis."), " The images are synthetic: no photograph of any patient, and no patient has these eyes."),
            tag("li", "Grades are those the generator was asked for; no ophthalmologist has graded or looked at the images."),
            tag("li", f"It learned from {sum(runs[0].record['data']['counts']['grading']['train'])} photographs of one source: one clinic, camera and population are all that it can repeat." if not runs[0].kind else "It learned from made-up images and can repeat nothing else."),
            tag("li", "Whether images help is measured for the grader and the budget shown here, and for no other."),
            tag("li", "A training photograph may be recognizable in an image though no pair above shows it: the check looks at structure, over the images that were drawn."),
        ),
    ]  # fmt: skip


def _facts(run):
    network, record = run.network, run.record
    rates = [row["images_per_s"] for row in run.stats if _finite(row.get("images_per_s")) and row["images_per_s"] > 0]
    last = run.stats[-1] if run.stats else {}
    step = run.part("of").get("step", run.step)
    versions = record.get("versions") or {}
    return {
        "network": f"{run.config.network}, {'by grade' if network.conditional else 'without grades'}",
        "image": f"{network.size} × {network.size} pixels, {'colour' if network.channels == 3 else 'grey'}, "
        f"{run.config.data.crop.replace('_', ' ')}",
        "parameters": f"generator {run.parameters[0]:,}, discriminator {run.parameters[1]:,}",
        "trained": f"{last.get('kimg', 0):g} of {run.config.total_kimg:g} kimg at batch {run.config.batch_size}",
        "checkpoint": "none" if step is None else f"step {step}, {step * run.config.batch_size / 1000:g} kimg",
        "images/s": f"{statistics.median(rates):,.0f} (median while training)" if rates else "not logged",
        "devices": ", ".join(map(str, record.get("devices") or [])) or "not recorded",
        "processes": record.get("processes", "not recorded"),
        "revision": str(record.get("revision") or "not recorded"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
        "trained on": f"{record['data']['name']} ({record['data']['fingerprint'][:12]})",
    }


def _readings(runs):
    """What a grader reads in the images, as evaluation.json has it."""
    there = [(i, run) for i, run in enumerate(runs) if run.part("reading")]
    if not there:
        return None
    parts = [tag("h4", "What a grader reads in the images")]
    for i, run in there:
        if len(runs) > 1:
            parts.append(tag("p", swatch(i), tag("b", run.name)))
        parts.append(table(["", ""], [[key, _value(value)] for key, value in run.part("reading").items()]))
    return parts


def _value(value):
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ", ".join(_value(one) for one in value)
    if isinstance(value, dict):
        return "; ".join(f"{key} {_value(one)}" for key, one in value.items())
    return str(value)
