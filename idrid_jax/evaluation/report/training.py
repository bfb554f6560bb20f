"""The section on training: curves from stats.jsonl, and which snapshot was taken."""

from idrid_jax.evaluation.memorization import SHARE
from idrid_jax.evaluation.quality import COLLAPSE
from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.entries import finite
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.markup import absent, hint, swatch, tag

CURVES = (  # title, what it tells, {key in stats.jsonl: caption}
    ("Losses", "", {"loss_d": "discriminator", "loss_g": "generator"}),
    (
        "Discriminator's probability of “real”",
        "The mean; of images also after its update.",
        {"d_real": "photographs", "d_fake_before": "images", "d_fake_after": "after"},
    ),
    ("Gradient norms", "", {"grad_norm_d": "discriminator", "grad_norm_g": "generator"}),
)
MEASURES = (  # of a snapshot: title, what it tells, {key: caption}, line across
    (
        "KID to photographs held back",
        "Low is good. By ImageNet features, and by those of a grader.",
        {"kid_imagenet": "ImageNet", "kid_grader": "grader"},
        None,
    ),
    ("Diversity", "Variance of the images' features over that of photographs; 1 is as real.", {"diversity": ""}, 1),
    (
        "Copied",
        f"Share twice as near to one training photograph as to any other; not taken above {SHARE:.0%}.",
        {"copy_rate": ""},
        SHARE,
    ),
    ("SSIM among images, less among real", f"Collapse above {COLLAPSE}.", {"ssim_excess": ""}, COLLAPSE),
)
UNSHOWN = {"step", "kimg", "seconds", "images_per_s", "d_accuracy", "ssim_within", "ssim_gap", "rejected"}
UNSHOWN |= {key for _, _, curves, *_ in (*CURVES, *MEASURES) for key in curves}


def section(runs: list[Run]) -> list:
    several = len(runs) > 1
    parts = [
        tag("p", [swatch(i), tag("b", run.name), ": "] if several else None, _taken(run)) for i, run in enumerate(runs)
    ]
    panels = [_panel(runs, title, keys, tells=tells) for title, tells, keys in CURVES]
    logged = {key for run in runs for row in run.stats for key in row}
    panels += [_panel(runs, title, keys, line=line, tells=tells, dots=True) for title, tells, keys, line in MEASURES]
    panels += [_panel(runs, key, {key: ""}, dots=True) for key in sorted(logged - UNSHOWN)]
    if not any(panels):
        return [*parts, absent("stats.jsonl holds no curves.")]
    return [
        *parts,
        tag("div", panels, class_="panels"),
        hint(
            "kimg: thousands of real photographs shown to the discriminator. The upright line marks the snapshot that "
            "was taken. Peaks far above the rest of a curve are cut."
        ),
    ]


def _taken(run) -> str:
    """Which snapshot was taken, of which, and how it was chosen."""
    kimg = lambda step: f"{step * run.config.batch_size / 1000:g} kimg"
    step = run.taken
    if step is None:
        return "No checkpoint can be read."
    last = run.stats[-1]["step"] if run.stats else step
    text = f"step {step} ({kimg(step)})"
    text = f"Evaluated: {text}" if run.part("run") else f"Shown: {text}, not evaluated"
    text += f", of a run of {kimg(last)}." if last != step else ", the last of the run."
    chosen = run.part("run").get("chosen")
    return f"{text} How it was chosen: {chosen.rstrip('.')}." if isinstance(chosen, str) and chosen else text


def _panel(runs, title, keys, *, line=None, tells="", dots=False):
    curves, marks = [], []
    for colour, run in enumerate(runs):
        for dash, key in enumerate(keys):
            points = [(float(row["kimg"]), float(row[key])) for row in run.stats if finite(row.get(key))]
            curves.append(figures.Curve(points, colour, dash, dots=dots and len(points) < 40))
        if run.taken is not None:
            marks.append((run.taken * run.config.batch_size / 1000, colour, "taken" if len(runs) == 1 else ""))
    if not any(curve.points for curve in curves):
        return None
    drawn = {curve.dash for curve in curves if curve.points}
    legend = [(dash, caption) for dash, caption in enumerate(keys.values()) if caption and dash in drawn]
    legend = [tag("span", figures.key(dash), " ", caption) for dash, caption in legend]
    return tag(
        "figure",
        tag("figcaption", tag("b", title), f" {tells}" if tells else None),
        figures.curves(title, curves, marks=marks, line=line),
        tag("figcaption", legend, class_="legend") if legend else None,
    )
