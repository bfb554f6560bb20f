"""A sweep's table and picture, as files and for people."""

import fcntl
import os
from pathlib import Path

import pandas as pd

from idrid_jax.data import atomic
from idrid_jax.sweep import plot, results
from idrid_jax.sweep.definition import Sweep

CSV, PICTURE = "sweep.csv", "sweep.png"

SHOWN = {  # column -> caption, digits
    "kimg": ("kimg", 2),
    "images_per_s": ("images/s", 0),
    "ssim": ("SSIM", 3),
    "psnr": ("PSNR", 2),
    "ssim_nearest": ("nearest", 3),
    "ssim_within": ("within", 3),
    "ssim_excess": ("excess", 3),
    "loss_d": ("Loss_D", 3),
    "loss_g": ("Loss_G", 3),
}


def write(sweep: Sweep, workdir: Path) -> pd.DataFrame:
    """Writes sweep.csv and sweep.png anew, whole or not at all, and returns the table. Several may do so at once."""
    with (workdir / ".sweep.results.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        frame = results.table(sweep, workdir)
        atomic.write_text(workdir / CSV, frame.to_csv(index=False))
        partial = workdir / f".{PICTURE}"
        plot.draw(frame, sweep.fields(), title=f"{sweep.path.stem}: {_about(sweep, workdir)}").savefig(
            partial, dpi=100, format="png"
        )
        os.replace(partial, workdir / PICTURE)
    return frame


def text(frame: pd.DataFrame, fields: list[str]) -> str:
    """Of `results.table`: a line for each run, what held-out photographs give, and what failed and why."""
    shown = pd.DataFrame({"run": frame.number})
    for axis in plot.axes(frame, fields):
        shown[axis.caption] = axis.labels
    shown["status"] = frame.status
    for name, (caption, digits) in SHOWN.items():
        shown[caption] = [f"{value:.{digits}f}" if pd.notna(value) else "-" for value in frame[name]]
    kids = [name for name in results.KIDS if frame[name].notna().any()]
    for name in kids:
        shown[name] = [f"{1000 * value:.1f}" if pd.notna(value) else "-" for value in frame[name]]
    lines = [shown.to_string(index=False)]
    if frame.ssim.notna().any():
        ssim, psnr = plot.held_out(frame, "ssim_held_out", 3), plot.held_out(frame, "psnr_held_out", 2)
        real = f" (held-out real photographs x training: {ssim}, {psnr})" if ssim else ""
        lines.append(
            f"SSIM, PSNR in dB: generated x training, means over all pairs{real};\n"
            "nearest: SSIM of each generated x its nearest training image; within: SSIM between generated images;\n"
            "excess: that less among training (collapse above 0.1)."
        )
    if kids:
        lines.append(f"{', '.join(kids)}: x1000, to the validation photographs, the lowest of the run's snapshots.")
    lines += [
        f"run {row.number} ({row['name']}) {row.status}: {row.reason}" for _, row in frame.iterrows() if row.reason
    ]
    return "\n".join(lines)


def _about(sweep, workdir):
    """What was trained and measured on, for the picture's title."""
    budgets = {run.config.total_kimg for run in sweep.runs}
    budget = f"{budgets.pop():g} kimg each, " if len(budgets) == 1 else ""
    for run in sweep.runs:
        if evaluated := results.evaluation(workdir / run.name):
            of = evaluated["run"]
            data = f"on {of['release']} ({of['fingerprint'][:12]})"
            return f"{of['network']}, {of['size']} x {of['size']} pixels, {budget}{data}"
    return f"{sweep.runs[0].config.network}, {budget}".removesuffix(", ")
