"""The section on usefulness: a grader trained with and without synthetic images, by seed."""

from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.entries import LACKING, bounds, finite, missing, number, unjudged, unmeasured, written
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.markup import Markup, hint, swatch, table, tag
from idrid_jax.evaluation.report.verdicts import NO_GRADES
from idrid_jax.evaluation.usefulness import ARMS

SHORT = {  # of ARMS
    "real": "real", "oversampled": "oversampled", "balanced": "real + synthetic", "filtered": "real + likeliest",
    "synthetic": "synthetic",
}  # fmt: skip
PANELS = (  # title, part, measure, line across, whether differences
    ("Quadratic kappa", "arms", "kappa", None, False),
    ("Balanced accuracy", "arms", "balanced_accuracy", None, False),
    ("Kappa less that of the better way without synthetic images", "differences", "kappa", 0, True),
)


def section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "A network that grades retinopathy is trained with and without synthetic images, several times, and read "
            "on held-out real photographs. Quadratic kappa: 1 is agreement with the graders, 0 is chance. A ring "
            "is one training, the bar their mean, the line a 95 % interval; differences are between those of one seed.",
        )
    ]
    several, found = len(runs) > 1, []
    for i, run in enumerate(runs):
        part = run.part("usefulness")
        if isinstance(part.get("arms"), dict):
            found.append((i, run, part))
        elif part or (run.evaluation and not run.network.conditional):
            parts.append(unjudged(run, missing(part, NO_GRADES.format(run.config.network)), several))
        else:
            parts.append(unmeasured(run, "Usefulness was not measured.", several, " --usefulness 5"))
    if not found:
        return parts
    arms = "; ".join(
        f"{SHORT[arm]}: {caption}" for arm, caption in ARMS.items() if any(arm in p["arms"] for *_, p in found)
    )
    parts += [_panels(found, several), hint(f"Trained on: {arms}.")]
    edema = [(i, run, part["edema"]) for i, run, part in found if isinstance(part.get("edema"), dict)]
    if edema:
        parts += [tag("h3", "Risk of macular oedema, read by the same graders"), _panels(edema, several)]
    for colour, run, part in found:
        budget = part.get("budget") or {}
        parts += [
            tag("h3", [swatch(colour), run.name, ": "] if several else None, "Confusion matrices"),
            hint(
                f"Rows: the true grade; columns: the grade read; counts over {part.get('seeds')} trainings of "
                f"{budget.get('steps')} updates with {budget.get('batch_size')} images. Recall: the share of a true "
                "grade that is read so."
            ),
            tag(
                "div", (confusion(ARMS[arm], part["arms"][arm]) for arm in ARMS if arm in part["arms"]), class_="tables"
            ),
        ]
    return parts


def _panels(found, several):
    panels = []
    for title, where, key, line, signed in PANELS:
        rows = []
        for arm in ARMS:
            there = [(i, run, part[where][arm]) for i, run, part in found if arm in (part.get(where) or {})]
            rows += [figures.Row(SHORT[arm], None, missing="")] if several and there else []
            rows += [_row(entry, key, run.name if several else SHORT[arm], i) for i, run, entry in there]
        if rows:
            drawn = figures.intervals(title, rows, decimals=3 if signed else 2, line=line, signed=signed)
            panels.append(tag("figure", tag("figcaption", tag("b", title)), drawn))
    return tag("div", panels, class_="panels")


def _row(arm, key, label, colour):
    entry = arm.get(key) or {}
    dots = [value for value in entry.get("by_seed") or [] if finite(value)]
    return figures.Row(label, number(entry, "mean"), bounds(entry), colour, dots=dots, missing=LACKING)


def confusion(caption, arm: dict) -> Markup:
    """The matrix of {"confusion", "recall"} as a table, each row shaded by its shares."""
    matrix, recall = arm.get("confusion") or [], list((arm.get("recall") or {}).values())
    rows = []
    for grade, line in enumerate(matrix):
        total = max(1, sum(line))
        cells = [tag("span", count, class_="shade", style=f"--s:{100 * count / total:.0f}%") for count in line]
        rows.append([grade, *cells, written(dict(enumerate(recall)), 2, key=grade)])
    return table(["", *range(len(matrix)), "recall"], rows, caption=caption, class_="confusion")
