"""The section on closeness: every metric next to its reference rows, overall and by grade."""

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import quality
from idrid_jax.evaluation.closeness import MEASURES
from idrid_jax.evaluation.report import plots
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.results import MISSING, interval, metric, missing_reason, number, text
from idrid_jax.evaluation.report.sections import Cell, Note, Table, label

REFERENCES = {  # rows of closeness, and their short captions
    "held_out_real": "held-out real",
    "halves": "two halves, real",
    "mean_image": "mean image",
    "noise": "noise",
}
FEW = "generated_few"  # as many generated as held-out images
OFF_SCALE = ("mean_image", "noise")  # they do not extend an axis
OF_FEATURES, OF_PIXELS = MEASURES["features"], MEASURES["pixels"]
HEADINGS = OF_FEATURES | OF_PIXELS
EXPLANATIONS = {
    "kid": "Kernel inception distance of two sets of features: 0 for equal distributions, by chance slightly below.",
    "frechet": "Distance of two normal distributions fitted to the features; larger for fewer images.",
    "frechet_ratio": "The same over that of two halves of the real photographs, with equal numbers of images.",
    "precision": "Share of generated images that lie where real ones lie.",
    "recall": "Share of real photographs that lie where generated ones lie: variety.",
    "density": "Mean density of real photographs around generated images.",
    "coverage": "Share of real photographs with a generated image nearby: variety.",
    "ms_ssim": "Similarity among the images of a set; above that of real ones they are too similar.",
    "sliced_wasserstein": "Distance of colors and textures over several scales.",
    "spectrum": "Difference of detail from coarse to fine (power spectrum).",
}


def closeness(runs: list[Run]) -> dict:
    """Panels for each extractor, for pixels and by grade, and the table of SSIM and PSNR."""
    notes, measured = [], []
    for run in runs:
        if results := run.results("closeness"):
            measured.append((run, results))
        else:
            notes.append(Note(run, "Closeness was not measured.", run.command()))
        for name, reason in run.results("skipped_weights").items():
            notes.append(Note(run, f"Not measured by {name}: {reason}."))
    networks = list(dict.fromkeys(name for _, results in measured for name in results.get("networks") or []))
    for run, results in measured:
        if against := results.get("trained_against"):
            text = f"The generator was trained against {', '.join(against)}"
            notes.append(Note(run, f"{text}: its numbers on this network are biased in its favor."))
    by_grade = [(run, results["by_grade"]) for run, results in measured if isinstance(results.get("by_grade"), dict)]
    counts = [results["images"] for _, results in measured if isinstance(results.get("images"), dict)]
    sizes = [", ".join(f"{count} {name.replace('_', '-')}" for name, count in each.items()) for each in counts]
    return {
        "notes": notes,
        "sizes": "; ".join(dict.fromkeys(sizes)),
        "by_network": [(name, _panels(measured, OF_FEATURES, name, runs)) for name in networks],
        "by_pixels": _panels(measured, OF_PIXELS, "", runs) if measured else [],
        "by_grade": _grade_panels(by_grade, networks, runs) if by_grade else [],
        "grade_tables": [_grade_table(by_grade, grade, networks, runs) for grade in GRADES] if by_grade else [],
        "similarity": _similarity_table(runs),
    }


def _panels(measured, names, network, runs):
    """A panel for each metric: the runs, then the references that runs on the same data share."""
    groups: dict[tuple, list] = {}
    for run, results in measured:
        if not network or network in results["networks"]:
            groups.setdefault(run.reference_key, []).append((run, results.get("rows") or {}))
    panels = []
    for name in names:
        rows = []
        for group in groups.values():
            for run, results in group:
                labels = {"generated": run.name if len(runs) > 1 else "generated", FEW: "equally many"}
                rows += [_row(results, key, name, network, labels[key], run.index) for key in labels if key in results]
            color = group[0][0].index if len(groups) > 1 and len(group) == 1 else None
            rows += [_row(group[0][1], key, name, network, text, color) for key, text in REFERENCES.items()]
        panels.append(_panel(name, network, rows, EXPLANATIONS.get(name, "")))
    return panels


def _row(results, row, name, network, caption, color):
    entry = metric(results, row, name, network)
    return plots.Row(
        caption,
        number(entry),
        interval(entry),
        color,
        reference=row not in ("generated", FEW),
        off_scale=row in OFF_SCALE,
        missing=MISSING,
    )


def _panel(name, network, rows, explanation):
    heading, good, decimals = HEADINGS[name]
    title = f"{heading}, {network or 'pixels'}"
    plot = plots.interval_plot(title, rows, decimals=decimals, factor=_factor(name))
    return {"title": heading, "explanation": f"Good: {good}. {explanation}", "plot": plot}


def _factor(name):
    return 1000 if name == "kid" else 1


def _grade_panels(by_grade, networks, runs):
    """KID within each grade, a panel for each extractor."""
    panels = []
    for network in networks:
        measured = [(run, grades) for run, grades in by_grade if _has_network(grades.values(), network)]
        rows = []
        for grade in GRADES if measured else ():
            rows += [plots.Row(grade)] if len(runs) > 1 else []
            for run, grades in measured:
                caption = run.name if len(runs) > 1 else grade
                rows.append(_row(grades.get(grade) or {}, "generated", "kid", network, caption, run.index))
            first = measured[0][1].get(grade) or {}
            rows.append(_row(first, "held_out_real", "kid", network, REFERENCES["held_out_real"], None))
        if rows:
            panels.append(_panel("kid", network, rows, f"By {network}."))
    return panels


def _has_network(results, network):
    return any(metric(rows or {}, "generated", "kid", network) for rows in results)


def _grade_table(by_grade, grade, networks, runs):
    """(table of every metric within a grade, the reasons for missing values)."""
    measured = [(run, grades.get(grade) or {}) for run, grades in by_grade]
    rows, reasons = [], set()
    for network in [*(n for n in networks if _has_network([results for _, results in measured], n)), ""]:
        rows.append([network or "pixels"])
        for name in OF_FEATURES if network else OF_PIXELS:
            entries = [metric(results, "generated", name, network) for _, results in measured]
            entries.append(metric(measured[0][1], "held_out_real", name, network))
            reasons |= {missing_reason(entry) for entry in entries if entry and number(entry) is None}
            rows.append([HEADINGS[name][0], *(_cell(entry, HEADINGS[name][2], _factor(name)) for entry in entries)])
    head = ["", *(label(run, runs) for run, _ in measured), REFERENCES["held_out_real"]]
    return Table(head, rows, grade), sorted(reasons)


def _cell(entry, decimals, factor):
    bounds, value = interval(entry), text(entry, decimals, factor)
    if bounds is None or number(entry) is None:
        return value
    low, high = (f"{bound * factor:z.{decimals}f}" for bound in bounds)
    return Cell(value, small=f"{low} to {high}")


def _similarity_table(runs):
    """SSIM and PSNR by the thesis's protocol; None if no run has them."""
    measured = [run for run in runs if run.results("quality.generated")]
    if not measured:
        return None
    rows = []
    for key, caption in quality.CAPTIONS.items():
        entries = [run.results(f"quality.{key}") for run in measured]
        rows.append([caption, *(f"{text(e, 3, key='ssim')} / {text(e, 2, key='psnr')}" for e in entries)])
    return Table(["", *(run if len(runs) > 1 else "SSIM / PSNR dB" for run in measured)], rows)
