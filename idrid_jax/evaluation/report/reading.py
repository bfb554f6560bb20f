"""The section on grades: what a grader of photographs reads in the images, beside what was asked for."""

from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.entries import bounds, missing, number, unjudged, unmeasured
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.markup import hint, swatch, tag
from idrid_jax.evaluation.report.usefulness import confusion
from idrid_jax.evaluation.report.verdicts import NO_GRADES

SETS = {"generated": "generated images: asked by read", "held_out": "held-out photographs: true by read"}


def section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "A grader that learned from the training photographs reads the grade of each generated image. Quadratic "
            "kappa: 1 where it reads what the generator was asked for, 0 is chance. Held-out photographs show how well "
            "it reads at all.",
        )
    ]
    several, rows, tables = len(runs) > 1, [], []
    for i, run in enumerate(runs):
        found = run.part("grading")
        if not found and run.evaluation and not run.network.conditional:
            parts.append(unjudged(run, NO_GRADES.format(run.config.network), several))
        elif not found:
            parts.append(unmeasured(run, "Grades were not read.", several))
        for key, caption in SETS.items():
            of = found.get(key)
            if number(of, "kappa") is None:
                parts.append(unjudged(run, missing(of), several) if of else None)
                continue
            label = "held-out real" if key == "held_out" else run.name if several else "generated"
            ring = {"reference": key == "held_out"}
            rows.append(figures.Row(label, number(of, "kappa"), bounds(of), i, **ring))
            name = [swatch(i), run.name, ": ", caption] if several else caption
            tables.append(confusion(name, of))
    if rows:
        title = "Quadratic kappa of grades read"
        drawn = figures.intervals(title, rows, decimals=2, line=0)
        parts.append(tag("div", tag("figure", tag("figcaption", tag("b", title)), drawn), class_="panels"))
        parts.append(
            hint("Rows: the grade asked for, or the true one; columns: the grade read; recall: share read so.")
        )
        parts.append(tag("div", tables, class_="tables"))
    return parts
