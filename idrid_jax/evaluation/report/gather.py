"""Read the files of a run for the report. What is missing is left out and named in `Run.notes`."""

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np
from PIL import Image

from idrid_jax.data import cache, splits
from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError
from idrid_jax.generation import sampling
from idrid_jax.images import GRID_GAP
from idrid_jax.models import NETWORKS, Network, build_networks
from idrid_jax.training.logging import read_stats
from idrid_jax.training.run_dir import RunDir, read_record

IMAGES_PER_GRADE, IMAGES_WITHOUT_GRADES = 10, 30
SECTION_DEPTHS = {  # sections of evaluation.json that must be objects, and their levels of nested objects
    "run": 1, "quality": 1, "quality.collapse": 1, "quality.by_grade": 2,
    "closeness": 1, "closeness.rows": 2, "closeness.by_grade": 3,
    "memorization": 1, "memorization.distances": 2, "membership": 1, "grading": 1, "augmentation_leak": 1,
    "usefulness": 1, "usefulness.sizes": 2, "skipped_weights": 1,
}  # fmt: skip
PHOTOGRAPHS, SYNTHETIC, PHANTOM = "photographs", "synthetic", "phantom"  # kinds of release


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as the report shows it.

    Attributes:
      name: shortest name that differs from those of the other runs. index: position among the runs.
      config: the resolved configuration. record: config.json.
      evaluation: evaluation.json, {} if there is none. stats: the lines of stats.jsonl.
      sampled_step: step of the checkpoint that generated `samples`; None if no checkpoint can be read.
      samples: (grade and its name, or "" without grades; generated images; photographs), uint8 [N, R, R, C].
      pairs: (generated image, its nearest training photograph, its entry in "memorization"), uint8 [R, R, C].
      parameters: number of parameters of the generator and the discriminator.
      num_training: number of training photographs without the validation fold; None without a manifest.
      manifest: of the release; None if it is no longer prepared. kind: PHOTOGRAPHS, SYNTHETIC or PHANTOM.
      notes: {"samples" or "release": what is missing, and what to do}.
    """

    name: str
    index: int
    workdir: Path
    config: ml_collections.ConfigDict
    record: dict
    evaluation: dict
    stats: list[dict]
    sampled_step: int | None
    samples: list[tuple[str, np.ndarray, np.ndarray]]
    pairs: list[tuple[np.ndarray, np.ndarray, dict]]
    parameters: tuple[int, int]
    num_training: int | None
    manifest: Manifest | None
    kind: str
    notes: dict[str, str]

    @property
    def network(self) -> Network:
        return NETWORKS[self.config.network]

    @property
    def step(self) -> int | None:
        """The evaluated step; without an evaluation, that of the samples."""
        step = self.results("run").get("step")
        return step if isinstance(step, int) else self.sampled_step

    @property
    def reference_key(self) -> tuple:
        """What the reference rows depend on: runs with equal keys have equal references."""
        data = self.config.data
        return (
            self.record["data"]["fingerprint"],
            data.held_out_fold,
            data.crop,
            self.network.size,
            self.network.channels,
        )

    def kimg(self, step: int) -> float:
        return step * self.config.batch_size / 1000

    def results(self, name: str) -> dict:
        """Return `evaluation[name]`, {} if it is absent; "quality.collapse" is `evaluation["quality"]["collapse"]`."""
        section = self.evaluation
        for key in name.split("."):
            section = section.get(key)
            if not isinstance(section, dict):
                return {}
        return section

    def command(self, flags: str = "") -> str:
        """Return the command that evaluates this run."""
        return f"idrid-jax evaluate --workdir {self.workdir}{flags}"


def short_names(workdirs: list[Path]) -> list[str]:
    """Return the last parts of each path, as few as make all of them different."""
    parts = [workdir.absolute().parts for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("--workdir names the same folder twice")


def gather(workdir: Path, name: str, index: int = 0, data_dir: str = "") -> Run:
    """Read the run in `workdir`. Raises UserError if there is none, or config.json or evaluation.json is damaged."""
    record = read_record(workdir)
    evaluation, notes = _read_evaluation(workdir), {}
    subject = evaluation.get("run", {})
    seed = subject.get("seed") if isinstance(subject.get("seed"), int) else 0
    sampler = _load_sampler(workdir, subject, notes)
    config = record.config_with_release(data_dir)
    manifest, training = _load_release(config, notes)
    in_training = None if manifest is None else ~splits.validation_mask(config, manifest)
    return Run(
        name=name,
        index=index,
        workdir=workdir,
        config=record.config,
        record=json.loads(RunDir(workdir).config.read_text()),
        evaluation=evaluation,
        stats=read_stats(workdir),
        sampled_step=None if sampler is None else sampler.step,
        samples=[] if sampler is None else _samples(sampler, training, seed),
        pairs=_memorization_pairs(workdir, evaluation, NETWORKS[config.network].size, training),
        parameters=_count_parameters(config),
        num_training=None if in_training is None else int(in_training.sum()),
        manifest=manifest,
        kind=_release_kind(manifest, record.release),
        notes=notes,
    )


def _read_evaluation(workdir) -> dict:
    """Return evaluation.json, {} without one. Raises UserError if it cannot be read or a section is no object."""
    path = RunDir(workdir).evaluation()
    try:
        evaluation = json.loads(path.read_text())
        if not isinstance(evaluation, dict):
            raise ValueError("it is not an object")
        for name, depth in SECTION_DEPTHS.items():
            section = functools.reduce(lambda outer, key: outer.get(key, {}), name.split("."), evaluation)
            if not _is_nested(section, depth):
                raise ValueError(f"{name} is not what idrid-jax evaluate writes")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: damaged ({error}): run idrid-jax evaluate --workdir {workdir} again") from error
    return evaluation


def _is_nested(value, depth):
    return isinstance(value, dict) and (depth == 1 or all(_is_nested(x, depth - 1) for x in value.values()))


def _load_sampler(workdir, subject, notes) -> sampling.Sampler | None:
    """Load the evaluated checkpoint as it was evaluated; if it is gone or none was, the one that sampling chooses."""
    step = subject.get("step") if isinstance(subject.get("step"), int) else None
    statistics = subject.get("statistics") if subject.get("statistics") in ("running", "recomputed") else "auto"
    try:
        return sampling.load_sampler(workdir, step, batch_statistics=statistics)
    except UserError as error:
        notes["samples"] = str(error)
    if step is None:
        return None
    with contextlib.suppress(UserError):
        sampler = sampling.load_sampler(workdir, batch_statistics=statistics)
        notes["samples"] = f"the evaluated checkpoint (step {step}) is gone: these images are of step {sampler.step}"
        return sampler
    return None


def _load_release(config, notes) -> tuple[Manifest | None, cache.Split | None]:
    manifest = None
    try:
        manifest = splits.find_release(config)
        return manifest, splits.load_training_photographs(config, manifest)
    except UserError as error:
        notes["release"] = f"{error}; name where it is prepared with --data_dir"
        return manifest, None


def _samples(sampler, training, seed):
    network = sampler.network
    none = np.zeros((0, network.size, network.size, network.channels), np.uint8)
    if not network.conditional:
        generated = np.stack(list(sampler.images(np.zeros(IMAGES_WITHOUT_GRADES, np.int32), seed=seed)))
        real = none if training is None else _spread(np.asarray(training.images), IMAGES_WITHOUT_GRADES)
        return [("", generated, real)]
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), IMAGES_PER_GRADE)
    generated = np.stack(list(sampler.images(grades, seed=seed)))
    samples = []
    for grade, name in enumerate(GRADES):
        real = none if training is None else training.images[training.grades == grade]
        samples.append((f"{grade} {name}", generated[grades == grade], _spread(real, IMAGES_PER_GRADE)))
    return samples


def _spread(images, count):
    """Return at most `count` images at even distances from the first to the last."""
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)]


def _memorization_pairs(workdir, evaluation, size, training):
    """Cut memorization.png into its pairs; [] if it does not belong to this evaluation.json."""
    listed = evaluation.get("memorization", {}).get("pairs")
    try:
        with Image.open(RunDir(workdir).memorization_pairs) as picture:
            pixels = np.asarray(picture)
    except (OSError, ValueError):
        return []
    step = size + GRID_GAP
    if not listed or pixels.shape[:2] != (2 * step - GRID_GAP, len(listed) * step - GRID_GAP):
        return []
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    index = {} if training is None else {name: i for i, name in enumerate(training.ids)}
    pairs = []
    for i, entry in enumerate(listed):
        generated, real = (pixels[y : y + size, i * step : i * step + size] for y in (0, step))
        if training is not None:
            name = entry.get("training")
            if name not in index or not np.array_equal(real, training.images[index[name]]):
                return []
        pairs.append((generated, real, entry))
    return pairs


def _count_parameters(config) -> tuple[int, int]:
    shapes = [jax.eval_shape(part.init, jax.random.key(0))[0] for part in build_networks(config)]
    generator, discriminator = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in shapes)
    return generator, discriminator


def _release_kind(manifest, name) -> str:
    """Return the kind of a release from the README.txt that `phantom` and `sample` write, or from its name."""
    if manifest is not None and (photographs := [p for split in manifest.grading.values() for p in split]):
        for folder in list(photographs[0].source.path.parents)[:8]:
            with contextlib.suppress(OSError):
                start = (folder / "README.txt").read_text(errors="replace")[:200]
                if start.startswith("A phantom of IDRiD"):
                    return PHANTOM
                if start.startswith("Synthetic images"):
                    return SYNTHETIC
    return PHANTOM if "phantom" in name.lower() else PHOTOGRAPHS
