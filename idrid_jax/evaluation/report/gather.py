"""What a run's folder holds -> plain data for the page. What is not there is left out, and said in `notes`."""

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np

from idrid_jax.data import cache, folds
from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.splits import find_release, load_split
from idrid_jax.errors import UserError
from idrid_jax.evaluation import evaluate as evaluation_run
from idrid_jax.generation import sampling
from idrid_jax.images import GRID_GAP
from idrid_jax.models import NETWORKS, Network, build_networks
from idrid_jax.training.logging import read_stats
from idrid_jax.training.run_dir import RunDir, read_record

PER_GRADE, WITHOUT_GRADES = 10, 30  # images shown
PARTS = {  # of evaluation.json, and how deep they are objects of objects
    "run": 1, "quality": 1, "quality.collapse": 1, "quality.by_grade": 2, "closeness": 1, "memorization": 1,
    "membership": 1, "grading": 1, "augmentation_leak": 1,
    "usefulness": 1, "closeness.rows": 2, "closeness.by_grade": 3, "usefulness.arms": 2, "usefulness.differences": 2,
    "skipped_weights": 1, "memorization.distances": 2,
}  # fmt: skip
DRAWN, MADE_UP = "synthetic", "phantom"  # kinds of release that are no photographs


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as the report shows it.

    Attributes:
      evaluation: evaluation.json, {} where there is none; stats: the lines of stats.jsonl.
      step: of the checkpoint that `samples` come from; None where none can be read.
      samples: (caption, generated, real), uint8 [N, R, R, C] both; `real` may be empty.
      pairs: (generated, its nearest training photograph, their entry in "memorization"), uint8 [R, R, C] both.
      parameters: of generator and discriminator.
      shown: how many training photographs the networks were shown; None where that is not known.
      manifest: of the release, None where it is no longer prepared; kind: DRAWN, MADE_UP, or "" for photographs.
      notes: {section: what it lacks, and what to do}.
    """

    name: str
    workdir: Path
    config: ml_collections.ConfigDict
    record: dict
    evaluation: dict
    stats: list[dict]
    step: int | None
    samples: list[tuple[str, np.ndarray, np.ndarray]]
    pairs: list[tuple[np.ndarray, np.ndarray, dict]]
    parameters: tuple[int, int]
    shown: int | None
    manifest: Manifest | None
    kind: str
    notes: dict[str, str]

    @property
    def network(self) -> Network:
        return NETWORKS[self.config.network]

    @property
    def taken(self) -> int | None:
        """The step that was evaluated; where none was, that of the samples."""
        step = self.part("run").get("step")
        return step if isinstance(step, int) else self.step

    @property
    def data(self) -> tuple:
        """What reference rows depend on: runs that share it share them."""
        return self.record["data"]["fingerprint"], self.network.size, self.network.channels, self.config.data.crop

    def part(self, name: str) -> dict:
        """Return `evaluation[name]`, {} if it is absent; "quality.collapse" is `evaluation["quality"]["collapse"]`."""
        found = self.evaluation
        for key in name.split("."):
            found = found.get(key)
            if not isinstance(found, dict):
                return {}
        return found


def names(workdirs: list[Path]) -> list[str]:
    """As short as tells them apart: the last part of each path, or more of it."""
    parts = [workdir.absolute().parts for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short):
            return short
    raise UserError("--workdir names one folder twice; name each once")


def gather(workdir: Path, name: str, data_dir: str = "") -> Run:
    """Reads a run. Raises UserError where no run is there, or config.json or evaluation.json is damaged."""
    found = read_record(workdir)
    evaluation, notes = _evaluation(workdir), {}
    seed = evaluation.get("run", {}).get("seed")
    seed = seed if isinstance(seed, int) else 0
    sampler = _sampler(workdir, evaluation.get("run", {}), notes)
    config = found.config_with_release(data_dir)
    manifest, training = _release(config, workdir, notes)
    return Run(
        name=name,
        workdir=workdir,
        config=found.config,
        record=json.loads(RunDir(workdir).config.read_text()),
        evaluation=evaluation,
        stats=read_stats(workdir),
        step=None if sampler is None else sampler.step,
        samples=_samples(sampler, training, seed),
        pairs=_pairs(workdir, evaluation, NETWORKS[config.network].size, training),
        parameters=_parameters(config),
        shown=None if manifest is None else _shown(manifest, config),
        manifest=manifest,
        kind=_kind(manifest, found.release),
        notes=notes,
    )


def _evaluation(workdir) -> dict:
    path = workdir / evaluation_run.NAME
    try:
        evaluation = json.loads(path.read_text())
        if not isinstance(evaluation, dict):
            raise ValueError("it holds no object")
        for part, depth in PARTS.items():
            found = functools.reduce(lambda whole, name: whole.get(name, {}), part.split("."), evaluation)
            if not _nested(found, depth):
                raise ValueError(f"{part} is not what idrid-jax evaluate writes")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: damaged ({error}): run idrid-jax evaluate --workdir {workdir} again") from error
    return evaluation


def _nested(value, depth):
    """Whether it is an object, of objects below `depth` 1."""
    return isinstance(value, dict) and (depth == 1 or all(_nested(one, depth - 1) for one in value.values()))


def _sampler(workdir, of, notes) -> sampling.Sampler | None:
    """Of the evaluated checkpoint, as it was evaluated; of the one that a run takes where that is gone or none was."""
    step = of.get("step") if isinstance(of.get("step"), int) else None
    statistics = of.get("statistics") if of.get("statistics") in ("running", "recomputed") else "auto"
    try:
        return sampling.load_sampler(workdir, step, batch_statistics=statistics)
    except UserError as error:
        notes["samples"] = str(error)
    if step is None:
        return None
    with contextlib.suppress(UserError):
        sampler = sampling.load_sampler(workdir, batch_statistics=statistics)
        notes["samples"] = f"The evaluated checkpoint (step {step}) is gone: these images are of step {sampler.step}."
        return sampler
    return None


def _release(config, workdir, notes) -> tuple[Manifest | None, cache.Split | None]:
    manifest = None
    try:
        manifest = find_release(config)
        return manifest, load_split(config, manifest, "train")
    except UserError as error:
        notes["release"] = f"{error}; name where it is prepared with --data_dir"
        return manifest, None


def _samples(sampler, training, seed):
    if sampler is None:
        return []
    none = np.zeros((0, sampler.network.size, sampler.network.size, sampler.network.channels), np.uint8)
    if not sampler.network.conditional:
        drawn = np.stack(list(sampler.images(np.zeros(WITHOUT_GRADES, np.int32), seed=seed)))
        return [("", drawn, none if training is None else _spread(np.asarray(training.images), WITHOUT_GRADES))]
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), PER_GRADE)
    drawn = np.stack(list(sampler.images(grades, seed=seed)))
    real = [none if training is None else training.images[training.grades == g] for g in range(len(GRADES))]
    captions = [f"{grade} {name}" for grade, name in enumerate(GRADES)]
    return [(text, drawn[grades == grade], _spread(real[grade], PER_GRADE)) for grade, text in enumerate(captions)]


def _spread(images, count):
    """So many of them, from the first to the last."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)]


def _pairs(workdir, evaluation, size, training):
    """The pairs of copies.png, as it was measured; none where it shows other photographs than evaluation.json says."""
    from PIL import Image

    copies = evaluation.get("memorization")
    listed = copies.get("pairs") if isinstance(copies, dict) else None
    try:
        with Image.open(workdir / evaluation_run.PAIRS) as picture:
            pixels = np.asarray(picture)
    except (OSError, ValueError):
        return []
    step = size + GRID_GAP
    if not listed or pixels.shape[:2] != (2 * step - GRID_GAP, len(listed) * step - GRID_GAP):
        return []
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    cut = lambda row, i: pixels[row * step : row * step + size, i * step : i * step + size]
    pairs = [(cut(0, i), cut(1, i), entry) for i, entry in enumerate(listed)]
    if training is not None:
        at = {name: i for i, name in enumerate(training.ids)}
        shown = lambda real, entry: np.array_equal(real, training.images[at[entry["training"]]])
        if not all(entry.get("training") in at and shown(real, entry) for _, real, entry in pairs):
            return []
    return pairs


def _shown(manifest, config) -> int:
    return int((~folds.validation(manifest, config.data.validation_folds)).sum())


def _parameters(config) -> tuple[int, int]:
    count = lambda made: sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(made.init, jax.random.key(0))[0])
    )
    generator, discriminator = build_networks(config)
    return count(generator), count(discriminator)


def _kind(manifest, name) -> str:
    """By what the README.txt of the release says, which `phantom` and `sample` write; by its name where it is gone."""
    if manifest is not None and (photographs := [p for split in manifest.grading.values() for p in split]):
        for folder in list(photographs[0].source.path.parents)[:8]:
            with contextlib.suppress(OSError):
                begins = (folder / "README.txt").read_text(errors="replace")[:200]
                if begins.startswith("A phantom of IDRiD"):
                    return MADE_UP
                if begins.startswith("Synthetic images"):
                    return DRAWN
    return MADE_UP if "phantom" in name.lower() else ""


def command(run: Run, more: str = "") -> str:
    """What measures a run."""
    return f"idrid-jax evaluate --workdir {run.workdir}{more}"
