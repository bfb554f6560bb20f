"""What the runs of a sweep came to, read from their folders."""

import dataclasses
import fcntl
import json
from pathlib import Path

import numpy as np
import pandas as pd

from idrid_jax.config import steps
from idrid_jax.data import atomic
from idrid_jax.evaluation.evaluate import NAME as EVALUATION
from idrid_jax.sweep.definition import Run, Sweep
from idrid_jax.training.logging import read_stats

STATUS = ".sweep.json"  # in a run's folder: what the sweep last knew of it
LOCK = ".sweep.lock"  # in a run's folder and in the sweep's: held by whoever works there

FINISHED, FAILED, INTERRUPTED, RUNNING, WAITING = "finished", "failed", "interrupted", "running", "waiting"

# column -> where evaluation.json has it, in "quality"
MEASURES = {
    "ssim": ("generated", "ssim"),  # all generated images x all training ones
    "psnr": ("generated", "psnr"),
    "ssim_nearest": ("nearest_to_generated", "ssim"),  # each generated x its nearest training image
    "psnr_nearest": ("nearest_to_generated", "psnr"),
    "ssim_within": ("within_generated", "ssim"),
    "psnr_within": ("within_generated", "psnr"),
    "ssim_excess": ("collapse", "ssim_excess"),  # among generated less among training images; collapse above 0.1
    "ssim_held_out": ("held_out_real", "ssim"),  # what held-out real photographs give x training
    "psnr_held_out": ("held_out_real", "psnr"),
}
# column -> key in stats.jsonl, of its last line
LAST = {"kimg": "kimg", "loss_d": "loss_d", "loss_g": "loss_g"}
KIDS = ("kid_imagenet", "kid_grader")  # of `evaluation.snapshot_metrics`: the lowest of a run's, as far as it has them


@dataclasses.dataclass
class Status:
    """What the sweep last knew of a run; `seconds` of work on it, over all attempts."""

    status: str = WAITING
    reason: str = ""
    seconds: float = 0.0
    name: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Status":
        try:
            known = json.loads((folder / STATUS).read_text())
            return cls(**{field.name: known[field.name] for field in dataclasses.fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):  # none, or cut short
            return cls(name=folder.name)

    def write(self, folder: Path) -> None:
        atomic.write_text(folder / STATUS, json.dumps(dataclasses.asdict(self)) + "\n")


def finished(run: Run, folder: Path) -> bool:
    """Whether evaluation.json was written after the step with which the run's configuration ends."""
    return (evaluated := evaluation(folder)) is not None and evaluated["run"]["last_step"] >= last_step(run)


def last_step(run: Run) -> int:
    return steps(run.config.total_kimg, run.config)


def table(sweep: Sweep, workdir: Path) -> pd.DataFrame:
    """A row for each run: number, name, every field that some run changes, status, reason, and `MEASURES`, `LAST`,
    `KIDS` (the lowest of the one that chooses the snapshot is of the one evaluated), images/s (median over the run's
    log) and seconds, as far as they are there yet."""
    rows = []
    for run in sweep.runs:
        folder = workdir / run.name
        known, lines = Status.read(folder), read_stats(folder)
        row = {"number": run.number, "name": run.name}
        row |= {name: _field(run.config, name) for name in sweep.fields()}
        if finished(run, folder):
            known.status, known.reason = FINISHED, ""
        elif known.status == FINISHED:  # of a shorter run
            known.status = WAITING
        elif known.status == RUNNING and not in_use(folder):  # the sweep that said so was killed
            known.status = INTERRUPTED
        row |= {"status": known.status, "reason": known.reason}
        row |= {name: lines[-1].get(key) if lines else None for name, key in LAST.items()}
        row |= {name: min((line[name] for line in lines if name in line), default=None) for name in KIDS}
        row["images_per_s"] = rate(lines) if lines else None
        evaluated = evaluation(folder) if known.status == FINISHED else None
        row |= {name: ((evaluated or {"quality": {}})["quality"].get(of) or {}).get(key) for name, (of, key) in MEASURES.items()}
        row["seconds"] = round(known.seconds, 1) or None
        rows.append(row)
    frame = pd.DataFrame(rows)
    numbers = [*LAST, *KIDS, "images_per_s", *MEASURES, "seconds"]
    return frame.astype({name: float for name in numbers})


def forgotten(sweep: Sweep, workdir: Path) -> list[str]:
    """Folders of runs that an earlier form of the sweep file named."""
    names = {run.name for run in sweep.runs}
    return sorted(path.parent.name for path in workdir.glob(f"*/{STATUS}") if path.parent.name not in names)


def rate(lines: list[dict]) -> float:
    """images/s: the median over the log, as a line that follows closely on another may be far off."""
    return float(np.median([line["images_per_s"] for line in lines]))


def in_use(folder: Path) -> bool:
    """Whether a sweep, or a process that it started, works in `folder`."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def evaluation(folder: Path) -> dict | None:
    """What `idrid-jax evaluate` wrote there, None where there is nothing of its."""
    try:
        evaluated = json.loads((folder / EVALUATION).read_text())
        known = "last_step" in evaluated["run"] and "quality" in evaluated
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return None
    return evaluated if known else None


def _field(config, name):
    for part in name.split("."):
        config = config[part]
    return config
