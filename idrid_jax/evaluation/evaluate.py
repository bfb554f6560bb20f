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
from idrid_jax.data import atomic, folds, laterality, splits
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
from idrid_jax.images import encode_image, image_grid, to_float, to_uint8
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import augment
from idrid_jax.training.optimizers import grade_conditioning

NAME = "evaluation.json"
POOLED = "usefulness_pooled.json"
PAIRS = "memorization.png"  # the generated images nearest to training photographs, each above its own
NUM_UNTRAINED = 8  # discriminators whose logits are the reference of the membership attack
Progress = Callable[[str, int], None]  # (the current stage, the number of stages)


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

    The grades of the images are in the training split's proportions. The test split is the held-out one and may be
    empty; nothing is chosen by it.

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
        raise UserError("--usefulness is measured at the images' own size: omit --pixels")
    extractors, skipped = pretrained.load_all(weights_files)
    extractors = [_remember(extractor) for extractor in extractors]
    source = evaluated_run.load(workdir, step, statistics, data_dir, pixels, extractors)
    saved = None if grader_file is None else _load_grader(grader_file, source)
    conditional = source.sampler.network.conditional
    reads_grades = conditional and source.judge is not None
    num_stages = 2 + 2 * (pixels is None) + 3 * len(extractors) + len(GRADES) * conditional + reads_grades
    if usefulness_seeds and reads_grades:
        num_stages += 1 + usefulness.num_stages(_full_size(source))
    log = functools.partial(_log_stage, on_progress, num_stages)

    training, held_out, cache_dir = source.training, source.held_out, source.manifest.folder / "features"
    count = len(training.grades) if count is None else count
    log(f"generating {count} images; PSNR and SSIM of all pairs")
    images, grades = _generate(source, count, seed, pixels)
    real, held = np.asarray(training.images), np.asarray(held_out.images)
    sets = images, grades if conditional else None, real, training.grades, held, held_out.grades
    result = {"run": source.description | {"seed": seed}, "quality": quality.measure(*sets, seed=seed)}
    from_cache = functools.partial(_cached_features, cache_dir)
    result["closeness"] = closeness.measure(
        *sets,
        extractors=extractors,
        trained_against=source.sampler.run.trained_against,
        photograph_features=from_cache,
        seed=seed,
        log=log,
    )
    if conditional:
        options = {"cache_dir": cache_dir, "seed": seed}
        result["grading"] = _grading(source, saved, images, grades, log, options)
    if pixels is None:
        log("memorization of training photographs")
        features = _softened_features(extractors, images, real, held, from_cache)
        result["memorization"] = memorization.measure(images, real, held, training.ids, features)
        log("membership inference")
        result["membership"] = membership.measure(*_logits(source))
        if augmentation := augment.augmentation_from_config(source.sampler.config):
            augmented = _augment(real, augmentation.strengths, source.sampler.network.sample_batch_size, seed)
            result["augmentation_leak"] = augmentation_leak.measure(images, real, augmented, seed=seed)
    if skipped:
        result["skipped_weights"] = skipped
    path = Path(workdir) / file_name(pixels)
    if usefulness_seeds:
        options = {"seeds": usefulness_seeds, "keep_share": keep_share, "cache_dir": cache_dir, "log": log}
        result["usefulness"] = _usefulness(source, seed, options)
    elif earlier := _earlier_usefulness(path, result):
        result["usefulness"] = earlier
    on_result(result)
    _write(Path(workdir), path, result, images, real)
    return result


def file_name(pixels: int | None) -> str:
    """Return the name of the file that `evaluate` writes."""
    return NAME if pixels is None else NAME.replace(".", f"_{pixels}.")


def _log_stage(on_progress, num_stages, text):
    on_progress(text, num_stages)


def _write(workdir, path, result, images, real):
    if pairs := result.get("memorization", {}).get("pairs"):
        both = [images[[pair["generated"] for pair in pairs]], real[[pair["index"] for pair in pairs]]]
        atomic.write_bytes(
            workdir / PAIRS, encode_image(np.asarray(image_grid(np.concatenate(both), len(pairs))), "png")
        )
    atomic.write_text(path, json.dumps(result, indent=2) + "\n")


# --- images and grading


def _generate(source, count, seed, pixels) -> tuple[np.ndarray, np.ndarray]:
    """Return images and their grades: the training split's grades, shuffled and repeated, so that any count has their
    proportions."""
    order = np.random.default_rng(seed).permutation(len(source.training.grades))
    grades = source.training.grades[np.resize(order, count)]
    images = np.stack(list(source.sampler.images(grades, seed=seed)))
    return images if pixels is None else downsample(images, pixels), grades


def _load_grader(path, source) -> frozen.FrozenGrader:
    """Return the grader in a file. Raises UserError if it cannot read the run's images, or saw the held-out ones."""
    config = source.config
    if not source.sampler.network.conditional:
        raise UserError(f"--grader: {config.network} is unconditional: its images have no grades to read")
    if source.judge is None:
        raise UserError(f"--grader: {source.no_judge}")
    if config.data.held_out_fold != folds.NO_FOLD:
        raise UserError("--grader: it was fitted to photographs that config.data.held_out_fold holds out: omit it")
    grader = frozen.load(path, extractor=source.judge, fingerprint=source.manifest.fingerprint)
    if grader.crop != config.data.crop:
        raise UserError(f"{path}: was fitted to photographs with crop {grader.crop}; the run has {config.data.crop}")
    return grader


def _grading(source, saved, images, grades, log, options) -> dict:
    """saved: a grader to ask, too, or None. options: of `grading.measure`."""
    if source.judge is None:
        return {"missing": source.no_judge}
    log("grading: a grader of the training photographs")
    training, held_out = source.training, source.held_out
    photographs = np.asarray(training.images), training.grades, np.asarray(held_out.images), held_out.grades
    result = grading.measure(source.judge, *photographs, images, grades, **options)
    if saved is not None:
        _, full_size = splits.load_evaluation_splits(source.config, source.manifest, saved.size)
        photographs = np.asarray(full_size.images), full_size.grades
        result["saved"] = grading.measure_saved(saved, source.judge, *photographs, images, grades, **options)
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


def _cached_features(cache_dir, extractor, images):
    return feature_cache.cached_features(extractor, images, cache_dir)


def _softened_features(extractors, generated, training, held_out, from_cache):
    """Return the features that `memorization.measure` needs, of `memorization.softened` images."""
    generated, training, held_out = (memorization.softened(images) for images in (generated, training, held_out))
    features = {}
    for extractor in extractors:
        ours = [extractor.extract(side) for side in (generated, generated[:, :, ::-1])]
        others = [from_cache(extractor, side) for side in (held_out, held_out[:, :, ::-1])]
        features[extractor.name] = np.stack(ours), from_cache(extractor, training), np.stack(others)
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

    def of_splits(arrays):
        batch = functools.partial(evaluate_batch, arrays)
        return tuple(map_in_batches(batch, *split, batch_size=batch_size) for split in photographs)

    untrained = [discriminator.init(jax.random.key(seed)) for seed in range(NUM_UNTRAINED)]
    return *of_splits(source.discriminator), [of_splits(arrays) for arrays in untrained]


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


def _usefulness(source, seed, options) -> dict:
    """options: further arguments of `usefulness.measure`."""
    sampler, training, held_out = source.sampler, source.training, source.held_out
    if not sampler.network.conditional:
        return {"missing": f"{sampler.config.network} is unconditional: its images have no grades to learn from"}
    if source.judge is None:
        return {"missing": source.no_judge}
    options["log"]("usefulness: generating images of every grade")
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), usefulness.num_synthetic(training.grades))
    full_size = None
    if size := _full_size(source):
        both = splits.load_evaluation_splits(source.config, source.manifest, size)
        full_size = tuple(np.asarray(split.images) for split in both)
    return usefulness.measure(
        source.judge,
        np.asarray(training.images),
        training.grades,
        np.asarray(held_out.images),
        held_out.grades,
        np.stack(list(sampler.images(grades, seed=seed))),
        grades,
        full_size=full_size,
        **options,
    )


def _full_size(source) -> int | None:
    """Return the side at which graders can see photographs in more detail than images; None if it is not larger."""
    size = source.judge.input_size or efficientnet.SIZE
    return size if size > source.sampler.network.size else None


def _earlier_usefulness(path, result) -> dict | None:
    """Return the usefulness in an earlier evaluation of the same images, None if there is none."""
    try:
        earlier = json.loads(path.read_text())
        return earlier["usefulness"] if earlier["run"] == result["run"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_pooled_usefulness(workdir: Path | str, results: Sequence[dict]) -> dict:
    """Write `usefulness.pool` of what `evaluate` returned for several runs to `workdir/usefulness_pooled.json` and
    return it. Raises UserError if it cannot be written."""
    pooled = usefulness.pool([result["usefulness"] for result in results])
    atomic.write_text(Path(workdir) / POOLED, json.dumps(pooled, indent=2) + "\n")
    return pooled
