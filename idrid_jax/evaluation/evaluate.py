"""`idrid-jax evaluate`: measure a run's generator against photographs and write evaluation.json.

`evaluate` reads the checkpoint and the release once, generates the images, asks one module per question (quality,
closeness, memorization, membership, grading, augmentation_leak, usefulness) and writes what they return, each under the
module's name.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.data import atomic, laterality, splits
from idrid_jax.data.folds import NO_FOLD
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.evaluation import (
    augmentation_leak,
    closeness,
    evaluated_run,
    grading,
    membership,
    memorization,
    quality,
    usefulness,
)
from idrid_jax.evaluation.downsample import downsample
from idrid_jax.evaluation.features import efficientnet, feature_cache, pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import frozen
from idrid_jax.evaluation.progress import Progress, stage_logger
from idrid_jax.images import encode_image, image_grid, to_float, to_uint8
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import augment
from idrid_jax.training.optimizers import grade_conditioning
from idrid_jax.training.run_dir import RunDir

NUM_UNTRAINED = 8  # discriminators whose logits are the reference of the membership attack


def evaluate(
    workdir: Path | str,
    *,
    count: int | None = None,
    seed: int = 0,
    step: int | None = None,
    pixels: int | None = None,
    statistics: str = "auto",
    data_dir: Path | str = "",
    weights_files: Sequence[Path | str] = (),
    grader_file: Path | str | None = None,
    usefulness_seeds: int = 0,
    keep_share: float = 0.5,
    on_progress: Progress = lambda text, stages: None,
    on_result: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure `count` generated images against the release that the run was trained on.

    The grades of the images are in the proportions of the training photographs. The held-out photographs are the test
    split, which may be empty, or fold `config.data.held_out_fold`; nothing is chosen by them.

    Args:
      count: default: as many as training photographs. seed: of the images and of every random choice.
      step, statistics: of the generator, see `sampling.load_sampler`.
      pixels: side to which images and photographs are downsampled, to compare runs of different sizes. Then only
        quality, closeness and grading are measured, and written to `evaluation_PIXELS.json`.
      data_dir: where the release is prepared; empty: where the run found it.
      weights_files: of pretrained feature extractors, see `features.pretrained`. All of them measure closeness and
        memorization; the first one that the generator was not trained against also reads grades. A file that cannot be
        read as one is skipped with a warning on stderr, and so is `pretrained.IMAGENET` if it is not installed. Without
        any, what needs features is missing.
      grader_file: of a grader that `idrid-jax grade` saved, which then reads grades, too.
      usefulness_seeds: graders for each arm of `usefulness.measure`. 0: none, but a result for the same images in an
        earlier evaluation.json is carried over. keep_share: see there.
      on_progress: called before each stage. on_result: called before the files are written, so that a full disk loses
        only the files.
    Returns: {"run": what was measured, "quality", "closeness", "memorization", "membership", "grading" (if the
      generator is conditional), "augmentation_leak" (if D saw augmented images), "usefulness": what these modules
      return, "skipped_weights": {file name: why}}; also written to `workdir/evaluation.json`, with the pairs of
      "memorization" in `workdir/memorization.png`.
    Raises: UserError if `read_run` does, a file of weights does not exist, the release is no longer prepared, `workdir`
      cannot be written, `grader_file` does not fit the run, or `pixels` is refused by `check_pixels` or given with
      `usefulness_seeds`.
    """
    if pixels is not None and usefulness_seeds:
        raise UserError(f"usefulness is measured at the images' own size, not at {pixels} pixels: omit one of the two")
    extractors, skipped = pretrained.load_all(weights_files)
    extractors = [_remember(extractor) for extractor in extractors]
    source = evaluated_run.load(workdir, step, statistics, data_dir, pixels, extractors)
    grader = None if grader_file is None else _load_grader(grader_file, source)
    count = len(source.training.grades) if count is None else count
    log = stage_logger(on_progress, _num_stages(source, pixels, usefulness_seeds))

    log(f"generating {count} images; PSNR and SSIM of all pairs")
    images = _generate(source, count, seed, pixels)
    result = {"run": source.description | {"seed": seed}}
    result |= _quality_and_closeness(source, images, seed, log)
    if source.sampler.network.conditional:
        result["grading"] = _grading(source, grader, images, seed, log)
    if pixels is None:
        result |= _memorization_and_leaks(source, images, seed, log)
    if skipped:
        result["skipped_weights"] = skipped
    path = RunDir(workdir).evaluation(pixels)
    if usefulness_seeds:
        result["usefulness"] = _usefulness(source, usefulness_seeds, keep_share, seed, log)
    elif earlier := _earlier_usefulness(path, result):
        result["usefulness"] = earlier
    on_result(result)
    _write(RunDir(workdir), path, result, images)
    return result


def _num_stages(source, pixels, usefulness_seeds) -> int:
    """Return how often `evaluate` reports a stage."""
    conditional = source.sampler.network.conditional
    reads_grades = conditional and source.grading_extractor is not None
    stages = 2 + 2 * (pixels is None) + 3 * len(source.extractors) + len(GRADES) * conditional + reads_grades
    if usefulness_seeds and reads_grades:
        stages += 1 + usefulness.num_stages(_full_size(source))
    return stages


def _write(run_dir, path, result, images):
    """Write the result, and the pairs of memorization: generated images, each above its nearest photograph."""
    if pairs := result.get("memorization", {}).get("pairs"):
        generated = images.generated[[pair["generated"] for pair in pairs]]
        nearest = images.training[[pair["index"] for pair in pairs]]
        grid = image_grid(np.concatenate([generated, nearest]), len(pairs))
        atomic.write_bytes(run_dir.memorization_pairs, encode_image(np.asarray(grid), "png"))
    atomic.write_text(path, json.dumps(result, indent=2) + "\n")


# --- images, and what compares them with photographs


@dataclasses.dataclass(frozen=True)
class _Images:
    """Images and photographs of one size.

    Attributes:
      generated, training, held_out: uint8 [N, R, R, C], R and C alike.
      requested, training_grades, held_out_grades: their grades, int [N]; of generated images the requested ones.
    """

    generated: np.ndarray
    requested: np.ndarray
    training: np.ndarray
    training_grades: np.ndarray
    held_out: np.ndarray
    held_out_grades: np.ndarray


def _generate(source, count, seed, pixels) -> _Images:
    """Generate images of the training photographs' grades, shuffled and repeated: any count has their proportions."""
    order = np.random.default_rng(seed).permutation(len(source.training.grades))
    requested = source.training.grades[np.resize(order, count)]
    generated = np.stack(list(source.sampler.images(requested, seed=seed)))
    return _Images(
        generated if pixels is None else downsample(generated, pixels),
        requested,
        np.asarray(source.training.images),
        source.training.grades,
        np.asarray(source.held_out.images),
        source.held_out.grades,
    )


def _quality_and_closeness(source, images, seed, log) -> dict:
    requested = images.requested if source.sampler.network.conditional else None
    photographs = images.training, images.training_grades, images.held_out, images.held_out_grades
    sets = images.generated, requested, *photographs
    return {
        "quality": quality.measure(*sets, seed=seed),
        "closeness": closeness.measure(
            *sets,
            extractors=source.extractors,
            trained_against=source.sampler.run.trained_against,
            photograph_features=functools.partial(_cached_features, source),
            seed=seed,
            log=log,
        ),
    }


def _memorization_and_leaks(source, images, seed, log) -> dict:
    """Return the results of memorization and membership, and of the augmentation leak if D saw augmented images."""
    log("memorization of training photographs")
    sets = images.generated, images.training, images.held_out
    features = _softened_features(source, *sets)
    result = {"memorization": memorization.measure(*sets, source.training.ids, features)}
    log("membership inference")
    result["membership"] = membership.measure(*_logits(source))
    if augmentation := augment.augmentation_from_config(source.sampler.config):
        batch_size = source.sampler.network.sample_batch_size
        augmented = _augment(images.training, augmentation.strengths, batch_size, seed)
        result["augmentation_leak"] = augmentation_leak.measure(images.generated, images.training, augmented, seed=seed)
    return result


# --- grading


def _load_grader(path, source) -> frozen.FrozenGrader:
    """Return the grader in a file. Raises UserError if it cannot read the run's images, or saw the held-out ones."""
    config = source.config
    if not source.sampler.network.conditional:
        raise UserError(f"{path}: no grader is needed: {config.network} is unconditional, its images have no grades")
    if source.grading_extractor is None:
        raise UserError(f"{path}: the grader cannot be used: {source.why_no_grading_extractor}")
    if config.data.held_out_fold != NO_FOLD:
        raise UserError(f"{path}: was fitted to photographs that config.data.held_out_fold holds out: omit it")
    grader = frozen.load(path, extractor=source.grading_extractor, fingerprint=source.manifest.fingerprint)
    if grader.crop != config.data.crop:
        raise UserError(f"{path}: was fitted to photographs with crop {grader.crop}; the run has {config.data.crop}")
    return grader


def _grading(source, saved_grader, images, seed, log) -> dict:
    """saved_grader: one of `idrid-jax grade`, whose results are added as "saved", or None."""
    extractor = source.grading_extractor
    if extractor is None:
        return {"missing": source.why_no_grading_extractor}
    log("grading: a grader of the training photographs")
    photographs = images.training, images.training_grades, images.held_out, images.held_out_grades
    generated, options = (images.generated, images.requested), {"cache_dir": _cache_dir(source), "seed": seed}
    result = grading.measure(extractor, *photographs, *generated, **options)
    if saved_grader is not None:
        _, held_out = splits.load_evaluation_splits(source.config, source.manifest, saved_grader.size)
        photographs = np.asarray(held_out.images), held_out.grades
        result["saved"] = grading.measure_saved(saved_grader, extractor, *photographs, *generated, **options)
    return result


# --- features


def _remember(extractor: FeatureExtractor) -> FeatureExtractor:
    """Return the same extractor, which computes the features of the same images once: a network needs minutes."""
    known = {}

    def extract(images):
        key = feature_cache.cache_key(images, extractor.name)
        if key not in known:
            known[key] = extractor.extract(images)
        return known[key]

    return dataclasses.replace(extractor, extract=extract)


def _cache_dir(source) -> Path:
    return source.manifest.folder / "features"


def _cached_features(source, extractor, images):
    return feature_cache.cached_features(extractor, images, _cache_dir(source))


def _softened_features(source, generated, training, held_out):
    """Return the features that `memorization.measure` needs, of `memorization.softened` images."""
    generated, training, held_out = (memorization.softened(images) for images in (generated, training, held_out))
    features = {}
    for extractor in source.extractors:
        sides = [_cached_features(source, extractor, side) for side in (training, training[:, :, ::-1])]
        held_out_features = _cached_features(source, extractor, held_out)
        features[extractor.name] = extractor.extract(generated), np.stack(sides), held_out_features
    return features


# --- the discriminator's logits, and its augmented input


def _logits(source):
    """Return the discriminator's logits of the training examples and of held-out photographs, and a list of the same of
    untrained discriminators."""
    config, step = source.sampler.config, source.sampler.step
    _, discriminator = build_networks(config)
    conditioned = grade_conditioning(config)
    batch_size = NETWORKS[config.network].sample_batch_size
    photographs = [(_as_trained_on(split.images, config), split.grades) for split in (source.examples, source.held_out)]

    @jax.jit
    def evaluate_batch(arrays, images, grades):
        return discriminator.eval(*arrays, to_float(images), conditioned(grades, step))

    def evaluate_photographs(arrays):
        batch = functools.partial(evaluate_batch, arrays)
        return tuple(map_in_batches(batch, *split, batch_size=batch_size) for split in photographs)

    untrained = [discriminator.init(jax.random.key(seed)) for seed in range(NUM_UNTRAINED)]
    return *evaluate_photographs(source.discriminator), [evaluate_photographs(arrays) for arrays in untrained]


def _as_trained_on(images, config) -> np.ndarray:
    """Return images as the discriminator saw them: mirrored left eyes would otherwise look generated to it."""
    images = np.asarray(images)
    if not config.data.canonicalize_laterality:
        return images
    return laterality.canonicalize_laterality(images, laterality.is_left_eye(images))


def _augment(images, strengths, batch_size, seed) -> np.ndarray:
    """Return photographs with every augmentation applied, uint8 [N, R, R, C]."""
    key = jax.random.key(seed)

    @jax.jit
    def augment_batch(key, x):
        return to_uint8(augment.apply(to_float(x), key, 1.0, strengths))

    def batch(indices, some):
        return augment_batch(jax.random.fold_in(key, indices[0]), some)

    return map_in_batches(batch, np.arange(len(images)), images, batch_size=batch_size)


# --- usefulness


def _usefulness(source, seeds, keep_share, seed, log) -> dict:
    """seeds, keep_share: see `usefulness.measure`. seed: of the images."""
    sampler, training, held_out = source.sampler, source.training, source.held_out
    if not sampler.network.conditional:
        return {"missing": f"{sampler.config.network} is unconditional: its images have no grades to learn from"}
    if source.grading_extractor is None:
        return {"missing": source.why_no_grading_extractor}
    log("usefulness: generating images of every grade")
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), usefulness.num_synthetic(training.grades))
    full_size = None
    if size := _full_size(source):
        both = splits.load_evaluation_splits(source.config, source.manifest, size)
        full_size = tuple(np.asarray(split.images) for split in both)
    return usefulness.measure(
        source.grading_extractor,
        np.asarray(training.images),
        training.grades,
        np.asarray(held_out.images),
        held_out.grades,
        np.stack(list(sampler.images(grades, seed=seed))),
        grades,
        full_size=full_size,
        seeds=seeds,
        keep_share=keep_share,
        cache_dir=_cache_dir(source),
        log=log,
    )


def _full_size(source) -> int | None:
    """Return the side at which graders can see photographs in more detail than images; None if it is not larger."""
    size = source.grading_extractor.input_size or efficientnet.SIZE
    return size if size > source.sampler.network.size else None


def _earlier_usefulness(path, result) -> dict | None:
    """Return the usefulness in an earlier evaluation of the same images, None if there is none."""
    try:
        earlier = json.loads(path.read_text())
        return earlier["usefulness"] if earlier["run"] == result["run"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_combined_usefulness(workdir: Path | str, results: Sequence[dict]) -> dict:
    """Write `usefulness.combine_runs` of what `evaluate` returned for several runs to the run directory `workdir` and
    return it. Raises UserError if it cannot be written."""
    combined = usefulness.combine_runs([result["usefulness"] for result in results])
    atomic.write_text(RunDir(workdir).combined_usefulness, json.dumps(combined, indent=2) + "\n")
    return combined
