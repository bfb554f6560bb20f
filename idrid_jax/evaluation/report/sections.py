"""What the sections of the page show: runs -> plots, tables and notes, which templates/ lays out."""

from typing import NamedTuple

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.memorization import QUANTILES, SHARE
from idrid_jax.evaluation.quality import COLLAPSE
from idrid_jax.evaluation.report import plots
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.results import MISSING, interval, is_number, missing_reason, number, percent, text
from idrid_jax.evaluation.report.verdicts import NO_GRADES

HELD_OUT = "held-out real"


class Note(NamedTuple):
    """A line in place of results that a run lacks; command: what computes them."""

    run: Run
    text: str
    command: str = ""


class Table(NamedTuple):
    """Rows of cells: text, a Run (its name with its color), or a Cell. A row of one cell is a heading."""

    head: list | None
    rows: list[list]
    caption: object = ""
    kind: str = ""


class Cell(NamedTuple):
    """A cell with smaller text below, a shade (0 to 100) behind it, or in the font of code."""

    text: object
    small: str = ""
    shade: int | None = None
    code: bool = False


def label(run: Run, runs: list[Run]) -> object:
    """Return what stands for a run's generated images: its name if there are several runs."""
    return run if len(runs) > 1 else "generated"


# --- training

CURVES = (  # title, explanation, {key of stats.jsonl: caption}, horizontal line
    ("Losses", "", {"loss_d": "discriminator", "loss_g": "generator"}, None),
    (
        "Sigmoid of the discriminator's logits",
        "Mean over the batch; of generated images before and after the discriminator's update.",
        {"d_real": "photographs", "d_fake_before": "generated", "d_fake_after": "after update"},
        None,
    ),
    ("Gradient norms", "", {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}, None),
)
METRICS = (  # of snapshots, likewise
    (
        "KID to validation photographs",
        "Lower is better; by ImageNet features.",
        {"kid_imagenet": ""},
        None,
    ),
    ("Diversity", "Variance of the features over that of photographs; 1 is as photographs.", {"diversity": ""}, 1),
    (
        "Copies",
        f"Share at least twice as near to one training photograph as to any other; above {SHARE:.0%} a snapshot is "
        "not chosen.",
        {"copy_rate": ""},
        SHARE,
    ),
    (
        "SSIM among generated minus among training images",
        f"Above {COLLAPSE} the generator has collapsed.",
        {"ssim_excess": ""},
        COLLAPSE,
    ),
)
WITHOUT_PLOT = {"step", "kimg", "seconds", "images_per_s", "d_accuracy", "ssim_within", "ssim_gap", "rejected"}


def training(runs: list[Run]) -> dict:
    """The evaluated step of each run, and a plot for each group of columns in stats.jsonl, unknown ones too."""
    logged = {key for run in runs for row in run.stats for key in row}
    known = {key for _, _, keys, _ in (*CURVES, *METRICS) for key in keys}
    groups = [(*group, group in METRICS) for group in (*CURVES, *METRICS)]
    groups += [(key, "", {key: ""}, None, True) for key in sorted(logged - known - WITHOUT_PLOT)]
    panels = [_curve_panel(runs, *group) for group in groups]
    return {"steps": [(run, _describe_step(run)) for run in runs], "panels": [panel for panel in panels if panel]}


def _describe_step(run) -> str:
    if run.step is None:
        return "No checkpoint can be read."
    last = run.stats[-1]["step"] if run.stats else run.step
    verb = "Evaluated" if run.results("run") else "Shown, not evaluated"
    out = f"{verb}: step {run.step} ({run.kimg(run.step):g} kimg), "
    out += f"of a run of {run.kimg(last):g} kimg." if last != run.step else "the last of the run."
    chosen = run.results("run").get("chosen")
    return f"{out} It is {chosen.rstrip('.')}." if isinstance(chosen, str) and chosen else out


def _curve_panel(runs, title, explanation, keys, line, is_metric):
    curves, marks = [], []
    for run in runs:
        for dash, key in enumerate(keys):
            points = [(float(row["kimg"]), float(row[key])) for row in run.stats if is_number(row.get(key))]
            curves.append(plots.Curve(points, run.index, dash, dots=is_metric and len(points) < 40))
        if run.step is not None:
            marks.append((run.kimg(run.step), run.index, "evaluated" if len(runs) == 1 else ""))
    dashes = {curve.dash for curve in curves if curve.points}
    if not dashes:
        return None
    legend = [(dash, caption) for dash, caption in enumerate(keys.values()) if caption and dash in dashes]
    return {
        "title": title,
        "explanation": explanation,
        "plot": plots.curve_plot(title, curves, marks=marks, line=line),
        "legend": legend,
    }


# --- memorization


def memorization(runs: list[Run]) -> dict:
    """Quantiles of similarity and of distance to the nearest training photograph, and the most similar pairs."""
    notes, similarity, distance = [], [], []
    for run in runs:
        results = run.results("memorization")
        if not results:
            notes.append(Note(run, "Memorization was not measured.", run.command()))
        elif not isinstance(results.get("generated"), dict):
            notes.append(Note(run, f"Not measured: {missing_reason(results)}."))
        else:
            for name, caption in (("generated", label(run, runs)), ("held_out", HELD_OUT)):
                images = results.get(name) or {}
                quantiles = [text(images.get("similarity"), 2, key=q) for q in ("0.5", "0.9", "0.99", "1")]
                similarity.append([caption, *quantiles, percent(images, "authentic")])
            distance += _distance_rows(label(run, runs), results.get("distances") or {})
    head = ["similarity to the nearest", "median", "90 %", "99 %", "highest", "authentic"]
    distance_head = ["distance to the nearest", *(f"{q:.0%}" for q in QUANTILES), "AuthPct", "C_T"]
    return {
        "notes": notes,
        "similarity": Table(head, similarity) if similarity else None,
        "distance": Table(distance_head, distance) if distance else None,
        "pairs": [_pairs(run) for run in runs],
    }


def _pairs(run):
    results = run.results("memorization")
    return {
        "run": run,
        "missing": bool(results.get("pairs")) and not run.pairs,
        "held_out": text((results.get("held_out") or {}).get("similarity"), 2, key="1"),
        "pairs": [(*images, entry.get("training"), text(entry, 2, key="similarity")) for *images, entry in run.pairs],
    }


def _distance_rows(caption, distances):
    rows = []
    for name, results in distances.items():
        rows.append([name])
        for key, row_caption in (("generated", caption), ("held_out", HELD_OUT)):
            images = results.get(key) or {}
            quantiles = [text(images.get("nearest"), 2, key=str(q)) for q in QUANTILES]
            c_t = number(results, "c_t")
            c_t = "" if key != "generated" else MISSING if c_t is None else f"{c_t:+.1f}"
            rows.append([row_caption, *quantiles, percent(images, "authentic"), c_t])
    return rows


# --- usefulness and grading

SIZES = {
    "generator": "photographs at the size of the generated images: what do these carry?",
    "full": "photographs at full size: does a user gain who has them?",
}
COMPARISONS = (  # title, part of the results, metric, vertical line, whether differences
    ("Quadratic kappa", "arms", "qwk", None, False),
    ("Balanced accuracy", "arms", "balanced_accuracy", None, False),
    ("Kappa minus that of the better arm without synthetic images", "differences", "qwk", 0, True),
)


def usefulness(runs: list[Run]) -> dict:
    """For each size of the photographs: kappa and balanced accuracy of each arm, their differences, the verdicts by
    grade, and the confusion matrices of each run."""
    notes, measured = [], []
    for run in runs:
        results = run.results("usefulness")
        if isinstance(results.get("sizes"), dict):
            measured.append((run, results))
        elif results or (run.evaluation and not run.network.conditional):
            notes.append(Note(run, f"Not measured: {missing_reason(results, NO_GRADES.format(run.config.network))}."))
        else:
            notes.append(Note(run, "Usefulness was not measured.", run.command(" --usefulness 5")))
    sizes = []
    for size, caption in SIZES.items():
        if there := [(run, results["sizes"][size]) for run, results in measured if size in results["sizes"]]:
            sizes.append((size, caption, _comparison_panels(there, size, runs), _by_grade(there, runs)))
    matrices = [
        (run, results.get("seeds"), results.get("extractor"), _arm_matrices(results["sizes"]))
        for run, results in measured
    ]
    return {"notes": notes, "sizes": sizes, "matrices": matrices}


def _comparison_panels(measured, size, runs):
    panels = []
    for title, part, key, line, signed in COMPARISONS:
        title, rows = f"{title}, {size} size", []
        for arm in dict.fromkeys(arm for _, results in measured for arm in results.get("arms") or {}):
            there = [(run, results[part][arm]) for run, results in measured if arm in (results.get(part) or {})]
            name = arm.replace("_", " ")
            if len(runs) > 1 and there:
                rows.append(plots.Row(name))
            for run, entry in there:
                rows.append(_arm_row(entry.get(key) or {}, run.name if len(runs) > 1 else name, run.index))
        if rows:
            plot = plots.interval_plot(title, rows, decimals=3 if signed else 2, line=line, signed=signed)
            panels.append({"title": title, "explanation": "", "plot": plot})
    return panels


def _arm_row(entry, caption, color):
    dots = [value for value in entry.get("by_seed") or [] if is_number(value)]
    return plots.Row(caption, number(entry, "mean"), interval(entry), color, dots=dots, missing=MISSING)


def _by_grade(measured, runs) -> Table | None:
    """The verdict within each grade, a column for each run."""
    verdicts = [(run, results["by_grade"]) for run, results in measured if isinstance(results.get("by_grade"), dict)]
    if not verdicts:
        return None
    rows = [[grade, *(str(results.get(grade, MISSING)) for _, results in verdicts)] for grade in GRADES]
    return Table(["grade", *(run if len(runs) > 1 else "synthetic images make" for run, _ in verdicts)], rows)


def _arm_matrices(sizes):
    return [
        confusion(f"{size} size: {arm.replace('_', ' ')}", entry)
        for size, results in sizes.items()
        for arm, entry in (results.get("arms") or {}).items()
    ]


def grading(runs: list[Run]) -> dict:
    """Kappa and confusion matrix of graders of photographs, on generated images and on held-out photographs."""
    notes, rows, matrices = [], [], []
    for run in runs:
        results = run.results("grading")
        if not results and run.evaluation and not run.network.conditional:
            notes.append(Note(run, f"Not measured: {NO_GRADES.format(run.config.network)}."))
        elif not results:
            notes.append(Note(run, "Grades were not predicted.", run.command()))
        elif "missing" in results:
            notes.append(Note(run, f"Not measured: {missing_reason(results)}."))
        for grader_results, which in ((results, ""), (run.results("grading.saved"), "saved grader, ")):
            parts = _grader_results(run, grader_results, f"{run.name}: {which}" if len(runs) > 1 else which)
            for all_of_them, part in zip((notes, rows, matrices), parts):
                all_of_them += part
    title = "Quadratic kappa of predicted and requested grades"
    plot = plots.interval_plot(title, rows, decimals=2, line=0) if rows else None
    return {
        "notes": notes,
        "panels": [{"title": title, "explanation": "", "plot": plot}] if plot else [],
        "matrices": matrices,
    }


def _grader_results(run, results, prefix):
    """Notes, rows of the plot and confusion matrices of one grader."""
    captions = {"generated": "generated images: requested by predicted", "held_out": "held-out photographs"}
    notes, rows, matrices = [], [], []
    if "grader" in results:
        notes.append(Note(run, f"The grader: {results['grader']}."))
    for key, caption in captions.items():
        entry = results.get(key)
        if number(entry, "qwk") is None:
            notes += [Note(run, f"Not measured: {missing_reason(entry)}.")] if entry else []
            continue
        name, bounds = prefix + key.replace("held_out", HELD_OUT), interval(entry, "qwk_interval")
        rows.append(plots.Row(name, number(entry, "qwk"), bounds, run.index, reference=key == "held_out"))
        matrices.append(confusion(prefix + caption, entry))
    return notes, rows, matrices


def confusion(caption: str, entry: dict) -> Table:
    """Return the table of an entry's "confusion" and "recall" (numbers, or entries with a "mean"), each row shaded by
    its shares."""
    matrix, recalls = entry.get("confusion") or [], list((entry.get("recall") or {}).values())
    recalls = [recall.get("mean") if isinstance(recall, dict) else recall for recall in recalls]
    rows = []
    for grade, counts in enumerate(matrix):
        total = max(1, sum(counts))
        cells = [Cell(f"{count:g}", shade=round(100 * count / total)) for count in counts]
        rows.append([grade, *cells, text(dict(enumerate(recalls)), 2, key=grade)])
    return Table(["", *range(len(matrix)), "recall"], rows, caption, "confusion")
