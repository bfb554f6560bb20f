"""A run's curves as one picture, from its stats.jsonl."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from idrid_jax.training.logging import read_stats

ADDED = "what is added to the losses, before its weight"  # a panel for runs that add something
PANELS = (  # title, {key in stats.jsonl: caption}
    ("adversarial losses (of binary cross-entropy, D's is the sum of both halves)", {"loss_d": "D", "loss_g": "G"}),
    (
        "D's mean probability of being real",
        {"d_real": "D(x)", "d_fake_before": "D(G(z)) before D's update", "d_fake_after": "D(G(z)) after"},
    ),
    ("gradient norms", {"grad_norm_d": "D", "grad_norm_g": "G"}),
    (
        ADDED,
        {
            "r1": "R1: |gradient of D|^2 on real images",
            "r2": "R2: on fake ones",
            "gradient_penalty": "gradient penalty between them",
            "lecam": "LeCam",
            "feature_matching": "feature matching",
        },
    ),
    (
        "KID of the snapshot's images to the validation photographs",
        {
            "kid_imagenet": "ImageNet features",
            "kid_grader": "grader's features",
        },
    ),
    (
        "alike: SSIM among the images less among real ones (collapse above 0.1); spread of features over photographs'",
        {"ssim_excess": "SSIM, excess", "diversity": "features' spread"},
    ),
)


@contextlib.contextmanager
def drawn(workdir: Path) -> Iterator[None]:
    """Draws the curves when the block ends, also when the run in it diverges."""
    try:
        yield
    finally:
        draw(workdir)


def draw(workdir: Path) -> None:
    """Writes `workdir/curves.png` from `workdir/stats.jsonl`; whole or not at all."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    rows = read_stats(workdir)
    there = set().union(*rows)
    panels = [(title, curves) for title, curves in PANELS if title != ADDED or there & curves.keys()]
    figure = Figure(figsize=(10, 3 * len(panels)), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(len(panels), 1, sharex=True), panels):
        for key, caption in curves.items():
            points = [(row["kimg"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points), label=caption, marker="." if len(points) < 40 else None) if points else None
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=9)
    axes.set_xlabel("kimg: thousands of real images shown to D")
    partial = workdir / ".curves.png"
    figure.savefig(partial, dpi=100, format="png")
    os.replace(partial, workdir / "curves.png")
