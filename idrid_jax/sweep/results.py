"""Results of a sweep: read from the run directories, written as a table (sweep.csv), a picture (sweep.png) and text."""

import dataclasses
import fcntl
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from idrid_jax.config import steps
from idrid_jax.data import atomic
from idrid_jax.sweep import plot
from idrid_jax.sweep.definition import FINISHED, INTERRUPTED, RUNNING, WAITING, Run, Sweep
from idrid_jax.training.logging import read_stats
from idrid_jax.training.run_dir import RunDir

STATUS_FILE = ".sweep.json"  # in a run's folder: its last known status
LOCK_FILE = ".sweep.lock"  # in a run's folder and in the sweep's: locked by the process that works there
CSV, PICTURE = "sweep.csv", "sweep.png"

# Column -> its section and key in "quality" of evaluation.json
METRICS = {
    "ssim": ("generated", "ssim"),  # all pairs of generated and training images
    "psnr": ("generated", "psnr"),
    "ssim_nearest": ("nearest_to_generated", "ssim"),  # generated images and their nearest training image
    "psnr_nearest": ("nearest_to_generated", "psnr"),
    "ssim_within": ("within_generated", "ssim"),
    "psnr_within": ("within_generated", "psnr"),
    "ssim_excess": ("collapse", "ssim_excess"),  # within generated minus within training images
    "ssim_held_out": ("held_out_real", "ssim"),  # reference: held-out real photographs and training images
    "psnr_held_out": ("held_out_real", "psnr"),
}
LAST_LOGGED = ("kimg", "loss_d", "loss_g")  # of the last line of stats.jsonl
KID = "kid_imagenet"  # `evaluation.snapshot_metrics`: the lowest of a run's snapshots

COLUMNS = {  # of the text: column -> caption, digits
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


@dataclasses.dataclass
class Status:
    """The last known status of a run; `seconds` are those of all attempts."""

    status: str = WAITING
    reason: str = ""
    seconds: float = 0.0
    name: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Status":
        try:
            content = json.loads((folder / STATUS_FILE).read_text())
            return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):  # missing or truncated
            return cls(name=folder.name)

    def write(self, folder: Path) -> None:
        atomic.write_text(folder / STATUS_FILE, json.dumps(dataclasses.asdict(self)) + "\n")


def is_finished(run: Run, folder: Path) -> bool:
    """Return whether the folder has an evaluation of the last step of the run's configuration, or of a later one."""
    evaluation = read_evaluation(folder)
    return evaluation is not None and evaluation["run"]["last_step"] >= last_step(run)


def last_step(run: Run) -> int:
    return steps(run.config.total_kimg, run.config)


def read_evaluation(folder: Path) -> dict | None:
    """Return the content of evaluation.json; None if it is missing or not readable as one."""
    try:
        evaluation = json.loads(RunDir(folder).evaluation().read_text())
        complete = "last_step" in evaluation["run"] and "quality" in evaluation
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return evaluation if complete else None


def abandoned_folders(sweep: Sweep, workdir: Path) -> list[str]:
    """Return the folders of runs that an earlier version of the sweep file had."""
    names = {run.name for run in sweep.runs}
    return sorted(path.parent.name for path in workdir.glob(f"*/{STATUS_FILE}") if path.parent.name not in names)


def is_locked(folder: Path) -> bool:
    """Return whether a sweep, or a process that it started, works in `folder`."""
    try:
        with (folder / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def median_images_per_s(lines: list[dict]) -> float:
    """Return the median over the lines of a log; single lines can be far off after a short interval."""
    return float(np.median([line["images_per_s"] for line in lines]))


def results_table(sweep: Sweep, workdir: Path) -> pd.DataFrame:
    """Return a row for each run: number, name, the fields that runs change, status, reason, metrics and times.

    Metrics are METRICS (of a finished run), LAST_LOGGED, and the lowest KID over the snapshots. `images_per_s` is
    the median over the log, `seconds` the time of all attempts. What is not known yet is NaN.
    """
    rows = []
    for run in sweep.runs:
        folder = workdir / run.name
        status, lines = _current_status(run, folder), read_stats(folder)
        row = {"number": run.number, "name": run.name}
        row |= {name: _field(run.config, name) for name in sweep.fields()}
        row |= {"status": status.status, "reason": status.reason}
        row |= {name: lines[-1].get(name) if lines else None for name in LAST_LOGGED}
        row[KID] = min((line[KID] for line in lines if KID in line), default=None)
        row["images_per_s"] = median_images_per_s(lines) if lines else None
        quality = read_evaluation(folder)["quality"] if status.status == FINISHED else {}
        row |= {name: (quality.get(section) or {}).get(key) for name, (section, key) in METRICS.items()}
        row["seconds"] = round(status.seconds, 1) or None
        rows.append(row)
    numbers = [*LAST_LOGGED, KID, "images_per_s", *METRICS, "seconds"]
    return pd.DataFrame(rows).astype({name: float for name in numbers})


def write_results(sweep: Sweep, workdir: Path) -> pd.DataFrame:
    """Write sweep.csv and sweep.png atomically and return the table. Several processes may do so at the same time."""
    with (workdir / ".sweep.results.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        frame = results_table(sweep, workdir)
        atomic.write_text(workdir / CSV, frame.to_csv(index=False))
        figure = plot.sweep_figure(frame, sweep.fields(), title=f"{sweep.path.stem}: {_subject(sweep, workdir)}")
        figure.savefig(picture := io.BytesIO(), dpi=100, format="png")
        atomic.write_bytes(workdir / PICTURE, picture.getvalue())
    return frame


def format_results(frame: pd.DataFrame, fields: list[str]) -> str:
    """Return the table as text: a line for each run, the values of held-out photographs, and why runs failed."""
    shown = pd.DataFrame({"run": frame.number})
    for axis in plot.find_axes(frame, fields):
        shown[axis.caption] = axis.labels
    shown["status"] = frame.status
    for name, (caption, digits) in COLUMNS.items():
        shown[caption] = [f"{value:.{digits}f}" if pd.notna(value) else "-" for value in frame[name]]
    has_kid = frame[KID].notna().any()
    if has_kid:
        shown[KID] = [f"{1000 * value:.1f}" if pd.notna(value) else "-" for value in frame[KID]]
    lines = [shown.to_string(index=False)]
    if frame.ssim.notna().any():
        ssim, psnr = plot.held_out_text(frame, "ssim_held_out", 3), plot.held_out_text(frame, "psnr_held_out", 2)
        reference = f" (held-out real photographs and training images: {ssim}, {psnr})" if ssim else ""
        lines.append(
            f"SSIM, PSNR (dB): means over all pairs of generated and training images{reference};\n"
            "nearest: SSIM of generated images and their nearest training image; within: SSIM between generated\n"
            "images; excess: within minus the same between training images (mode collapse above 0.1)."
        )
    if has_kid:
        lines.append(f"{KID}: x1000, to the validation photographs, the lowest of the run's snapshots.")
    lines += [
        f"run {row.number} ({row['name']}) {row.status}: {row.reason}" for _, row in frame.iterrows() if row.reason
    ]
    return "\n".join(lines)


def _current_status(run: Run, folder: Path) -> Status:
    """Return the status of a run, corrected by what its folder contains."""
    status = Status.read(folder)
    if is_finished(run, folder):
        status.status, status.reason = FINISHED, ""
    elif status.status == FINISHED:  # of a shorter run
        status.status = WAITING
    elif status.status == RUNNING and not is_locked(folder):  # its sweep was killed
        status.status = INTERRUPTED
    return status


def _subject(sweep: Sweep, workdir: Path) -> str:
    """Return network, size, length and release of the runs, for the title of the picture."""
    budgets = {run.config.total_kimg for run in sweep.runs}
    budget = f"{budgets.pop():g} kimg each, " if len(budgets) == 1 else ""
    for run in sweep.runs:
        if evaluation := read_evaluation(workdir / run.name):
            about = evaluation["run"]
            release = f"on {about['release']} ({about['fingerprint'][:12]})"
            return f"{about['network']}, {about['size']} x {about['size']} pixels, {budget}{release}"
    return f"{sweep.runs[0].config.network}, {budget}".removesuffix(", ")


def _field(config, name: str):
    for part in name.split("."):
        config = config[part]
    return config
