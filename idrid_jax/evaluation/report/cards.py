"""The data card and the model card."""

import statistics

from idrid_jax import config as config_lib
from idrid_jax.data.layout import GRADES, SPLITS
from idrid_jax.evaluation.report.entries import finite
from idrid_jax.evaluation.report.gather import DRAWN, MADE_UP, Run
from idrid_jax.evaluation.report.markup import absent, swatch, table, tag

HIDDEN = ("data.data_dir", "data.release", "log.console")  # of the machine, not of the model
EXCLUSIONS = 40  # listed at most
KINDS = {
    MADE_UP: "A phantom: made-up photographs in IDRiD's layout, drawn by a program, of no patient. Nothing in this "
    "report says anything about diabetic retinopathy, and IDRiD's licence and citation do not apply.",
    DRAWN: "Synthetic images in IDRiD's layout that another generator drew, no photographs of patients; the README.txt "
    "of that release tells where they come from.",
    "": "Photographs of the retina in IDRiD's layout, graded for diabetic retinopathy on the ICDR scale.",
}
LICENCE = (
    "The release is read as IDRiD, which is (c) P. Porwal, S. Pachade, M. Kokare, under the Creative Commons "
    "Attribution 4.0 International licence (CC BY 4.0). Its photographs on this page were cut and made smaller. Who "
    "publishes images or results cites:"
)
CITATION = (
    "Porwal P., Pachade S., Kamble R., Kokare M., Deshmukh G., Sahasrabuddhe V., Meriaudeau F.: Indian Diabetic "
    "Retinopathy Image Dataset (IDRiD): A Database for Diabetic Retinopathy Screening Research. Data 2018, 3(3):25, "
    "doi:10.3390/data3030025. Data: IEEE DataPort, doi:10.21227/H25W98."
)


# -- data


def data_section(runs: list[Run]) -> list:
    parts, same = [], {}
    for run in runs:
        same.setdefault(run.record["data"]["fingerprint"], []).append(run)
    for group in same.values():
        if len(same) > 1:
            parts.append(tag("h3", "Data of ", ", ".join(run.name for run in group)))
        parts += _data_card(next((run for run in group if run.manifest), group[0]))
    return parts


def _data_card(run):
    data, manifest = run.record["data"], run.manifest
    counts = data["counts"]["grading"]
    rows = [[f"{grade} {name}", *(counts[split][grade] for split in SPLITS)] for grade, name in enumerate(GRADES)]
    rows.append(["all", *(sum(counts[split]) for split in SPLITS)])
    fingerprint = tag("code", data["fingerprint"][:16])
    parts = [
        tag("p", KINDS[run.kind]),
        tag("p", "Release ", tag("b", data["name"]), ", fingerprint of what was used ", fingerprint, "."),
        table(["grade", "training", "held out (test)"], rows, caption="Photographs after exclusions"),
        tag(
            "p",
            "The generator saw the training split alone",
            _held_back(run),
            ". The held-out split is read by the evaluation, and chooses nothing.",
        ),
    ]
    if manifest is None:
        parts.append(absent("The release is no longer prepared here: exclusions and groups are not known."))
    else:
        parts += _audit(manifest)
    if not run.kind:
        parts += [tag("h4", "Licence and citation"), tag("p", LICENCE), tag("p", CITATION, class_="citation")]
    return parts


def _held_back(run):
    folds = run.config.data.get("validation_folds", 0)
    shown = "" if run.shown is None else f": {run.shown} photographs"
    return f", but for one of its {folds} folds, held back to choose the snapshot{shown}" if folds else ""


def _audit(manifest):
    """What was left out, and which photographs are the same."""
    lines = [*manifest.exclusions[:EXCLUSIONS]]
    if (more := len(manifest.exclusions) - len(lines)) > 0:
        lines.append(f"and {more} more")
    parts = [tag("h4", f"Left out: {len(manifest.exclusions)}")]
    parts.append(tag("ul", (tag("li", line) for line in lines)) if lines else tag("p", "Nothing."))
    if manifest.groups:
        groups = "; ".join(" = ".join(group) for group in manifest.groups)
        parts.append(tag("h4", f"The same photograph more than once: {len(manifest.groups)}"))
        parts.append(tag("p", f"Kept together where the training split is divided: {groups}."))
    return parts


# -- model


def model_section(runs: list[Run]) -> list:
    head = ["", *([swatch(i), run.name] for i, run in enumerate(runs))] if len(runs) > 1 else None
    facts = [_facts(run) for run in runs]
    flat = [config_lib.flatten(run.config) for run in runs]
    usual = config_lib.flatten(config_lib.default_config())
    differs = lambda name: name not in HIDDEN and any(one.get(name) != usual.get(name) for one in flat)
    changed = [
        [tag("code", name), *(_shown(name, one.get(name, "")) for one in flat)]
        for name in dict.fromkeys(name for one in flat for name in one)
        if differs(name)
    ]
    return [
        table(head, [[key, *(fact[key] for fact in facts)] for key in facts[0]], class_="facts"),
        tag("h4", "Configuration, where it differs from the defaults"),
        table(head, changed, class_="facts") if changed else tag("p", "Nowhere."),
        tag("h4", "Limits"),
        tag("ul", (tag("li", limit) for limit in _limits(runs))),
    ]


def _limits(runs):
    count = lambda run: run.shown or sum(run.record["data"]["counts"]["grading"]["train"])
    photographs = " and ".join(dict.fromkeys(str(count(run)) for run in runs if not run.kind))
    return [
        [tag("b", "Not for diagnosis."), " The images are synthetic: no photograph of any patient."],
        "Grades are those that the generator was asked for; nobody has graded the images.",
        f"It learned from {photographs} photographs of one source: one clinic, its camera and its patients are all "
        "that it can repeat."
        if photographs
        else "It learned from images that are no photographs, and can repeat nothing else.",
        "Whether the images help is measured for the grader and the budget of this report, and for no other.",
        "No sign of copying is no proof of privacy: the check compares structure, in the images that were drawn.",
    ]


def _facts(run):
    network, record = run.network, run.record
    rates = [row["images_per_s"] for row in run.stats if finite(row.get("images_per_s")) and row["images_per_s"] > 0]
    last = run.stats[-1]["kimg"] if run.stats else 0
    colour = "colour" if network.channels == 3 else "grey"
    step, versions = run.taken, record.get("versions") or {}
    return {
        "network": f"{run.config.network}, {'by grade' if network.conditional else 'without grades'}",
        "images": f"{network.size} × {network.size} pixels, {colour}, {run.config.data.crop.replace('_', ' ')}",
        "parameters": f"generator {run.parameters[0]:,}, discriminator {run.parameters[1]:,}",
        "trained": f"{last:g} of {run.config.total_kimg:g} kimg, {run.config.batch_size} images an update",
        "checkpoint": "none" if step is None else f"step {step}, {step * run.config.batch_size / 1000:g} kimg",
        "batch statistics": run.part("run").get("batch_statistics") or "not recorded",
        "images/s": f"{statistics.median(rates):,.0f} (median while training)" if rates else "not logged",
        "devices": ", ".join(map(str, record.get("devices") or [])) or "not recorded",
        "processes": record.get("processes", "not recorded"),
        "revision": record.get("revision") or "not recorded",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded",
        "trained on": f"{record['data']['name']} ({record['data']['fingerprint'][:12]})",
    }


def _shown(name, value):
    return str(value).rstrip("/").rpartition("/")[2] if name == "init_from" else str(value)
