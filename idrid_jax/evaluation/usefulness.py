"""Usefulness: does a grader read held-out photographs better when it is also trained on generated images?

The grader is a linear one on the features of a pretrained network: ordinal regression, the best of `idrid-jax grade`.
It is trained on several sets ("arms"), with the same seeds:

    real                the training photographs, augmented, each with the same weight
    real_balanced       the same, each grade with the same total weight, as in all arms below
    real_half           half of the photographs of each grade, a reference: what are as many photographs again worth?
    synthetic_balanced  all photographs, and synthetic images until every grade has as many as the largest
    synthetic_twice     all photographs, and synthetic images until every grade has twice as many
    synthetic_only      as many synthetic images of every grade, no photographs
    ..._filtered        as these three, with the synthetic images whose requested grade a grader of photographs finds
                        likeliest

The baseline is the better of the first two on the held-out photographs, which is to the disadvantage of the synthetic
images; nothing else is chosen by these. A grade's recall is compared with that of real_balanced: weights alone shift
recall from the frequent grades to the rare ones.

All arms share the regularization and the total weight of the images, and every seed has all training photographs. So a
generator that repeats its training photographs gains nothing. If seeds resampled the photographs, it would give back
those that a resample leaves out, and seem useful. A seed chooses the augmented variants of the photographs and the
synthetic images.

Photographs enter every arm in two sizes, each a question of its own: reduced to the generated images' size (what do the
images themselves carry?), and at full size (does a user who has the photographs gain anything?).
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from idrid_jax.batching import map_in_threads
from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.features import feature_cache
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers, frozen, metrics
from idrid_jax.evaluation.graders.augmentation import augmented
from idrid_jax.evaluation.usefulness_comparison import ARMS, SIZES, combine_runs, summarize, table

__all__ = ("ARMS", "combine_runs", "measure", "num_stages", "num_synthetic", "table")

WEIGHT_PER_PHOTOGRAPH = 2  # total weight of an arm's images, in training photographs: `grade` counts both sides of each
NUM_AUGMENTED = 2  # variants of a training photograph, besides the plain and the mirrored one; more read no better


def measure(
    extractor: FeatureExtractor,
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    synthetic: np.ndarray,
    synthetic_grades: np.ndarray,
    *,
    full_size: tuple[np.ndarray, np.ndarray] | None = None,
    seeds: int = 10,
    keep_share: float = 0.5,
    cache_dir: Path | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> dict:
    """Train `seeds` graders per arm and compare them on photographs that the generator never saw.

    Args:
      extractor: of the features that graders read.
      training, held_out, synthetic: uint8 [N, R, R, C], R and C alike. Of each grade, `synthetic` needs as many images
        as `num_synthetic` returns; more are ignored.
      ..._grades: int [N] in 0..4.
      full_size: the training and the held-out photographs at the extractor's input size or larger, in the same order,
        uint8 [N, S, S, C]. None: photographs are read at the generated images' size only.
      keep_share: share of the synthetic images of each grade that the filter keeps, in (0, 1].
      cache_dir: folder of cached features of photographs. log: called before each of `num_stages` stages.
    Returns: for json.dumps: "sizes" {size of SIZES: what `usefulness_comparison.compare` returns}; "size", the one
      whose question matters most, and its "verdict"; "seeds"; "extractor", its name; "keep_share"; "readings", for
      `combine_runs`: as texts with a digit for each held-out photograph, "truth" and "read" {size: {arm: [one for each
      seed]}}, and "photographs", a key for each. If it cannot be measured: {"missing": why}.
      Intervals hold for this set of photographs and synthetic images, not for another generator.
    Raises: ValueError if keep_share is out of range.
    """
    if not 0 < keep_share <= 1:
        raise ValueError(f"keep_share = {keep_share}: must be in (0, 1]")
    if why := _why_not(training_grades, held_out_grades, synthetic_grades):
        return {"missing": why}
    used = _first_of_each_grade(np.asarray(synthetic_grades), num_synthetic(training_grades))
    synthetic, labels = np.asarray(synthetic)[used], np.asarray(synthetic_grades)[used]
    photographs = {"generator": (training, held_out)} | ({} if full_size is None else {"full": full_size})
    features = {
        size: _photograph_features(extractor, *both, cache_dir, lambda text, size=size: log(f"{text} {SIZES[size]}"))
        for size, both in photographs.items()
    }
    log(f"usefulness: features of {len(synthetic)} synthetic images")
    # Features of each image once: more images are as good as more variants
    synthetic_features = extractor.extract(_half_mirrored(synthetic))
    read, training_grades = {}, np.asarray(training_grades)
    with threadpool_limits(1):  # of each fit: fits run in threads, and BLAS's own threads stall on a busy machine
        # by photographs of the same size: sharper ones have other features
        likelihood = _likelihood(features["generator"][0], training_grades, synthetic_features, labels)
        is_likely = likeliest(likelihood, labels, keep_share)
        for size, (training_features, held_out_features) in features.items():
            log(f"usefulness: graders {SIZES[size]}, {seeds} seeds")
            sets = _Sets(training_features, training_grades, synthetic_features, labels, is_likely)
            read[size] = _read_all(sets, held_out_features, seeds)
    result = summarize(np.asarray(held_out_grades), read, _keys(held_out), extractor=extractor.name)
    result["keep_share"] = keep_share
    return result


def num_synthetic(training_grades: np.ndarray) -> np.ndarray:
    """Return how many synthetic images of each grade are needed, int [5]: twice as many as the largest grade has."""
    return np.full(len(GRADES), 2 * _counts(training_grades).max())


def num_stages(full_size: object | None = None) -> int:
    """Return how often `measure` calls `log`; `full_size` as given to it."""
    sizes = 1 if full_size is None else 2
    return sizes * (2 + NUM_AUGMENTED) + 1 + sizes


def _why_not(training_grades, held_out_grades, synthetic_grades) -> str | None:
    for name, grades in (("held-out", held_out_grades), ("training", training_grades)):
        if len(np.unique(grades)) < 2:
            return f"{len(grades)} {name} photographs, of at most one grade"
    counts, wanted = _counts(synthetic_grades), num_synthetic(training_grades)
    if (short := np.flatnonzero(counts < wanted)).size:
        grade = short[0]
        return f"{counts[grade]} synthetic images of {GRADES[grade]}, {wanted[grade]} are needed"
    return None


def _counts(grades):
    return np.bincount(grades, minlength=len(GRADES))


def _first_of_each_grade(grades, counts, order=None) -> np.ndarray:
    """Return the places of the first counts[g] images of each grade g in `order`, by default their own."""
    order = np.arange(len(grades)) if order is None else order
    return np.sort(np.concatenate([order[grades[order] == grade][:count] for grade, count in enumerate(counts)]))


def _keys(images) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:12] for image in np.asarray(images)]


# --- features: of each image once, shared by all arms and seeds


def _photograph_features(extractor, training, held_out, cache_dir, log) -> tuple[np.ndarray, np.ndarray]:
    """Return features of the training photographs' variants, float32 [2 + NUM_AUGMENTED, N, D], plain and mirrored
    first, and of the held-out photographs, plain and mirrored: [2, M, D]."""

    def extract(images):
        if cache_dir is None:
            return extractor.extract(images)
        return feature_cache.cached_features(extractor, images, cache_dir)

    training, held_out, count = np.asarray(training), np.asarray(held_out), 2 + NUM_AUGMENTED
    training_features, held_out_features = [], []
    for number, flip in enumerate((1, -1)):
        log(f"usefulness: features ({number + 1} of {count}) of photographs")
        training_features.append(extract(np.ascontiguousarray(training[:, :, ::flip])))
        held_out_features.append(extract(np.ascontiguousarray(held_out[:, :, ::flip])))
    for number in range(NUM_AUGMENTED):
        log(f"usefulness: features ({number + 3} of {count}) of photographs")
        training_features.append(extract(augmented(training, number, min_size=extractor.input_size)))
    return np.stack(training_features), np.stack(held_out_features)


def _half_mirrored(images) -> np.ndarray:
    """Mirror every image with probability 1/2: held-out photographs are read on both sides."""
    mirrored = np.random.default_rng(0).random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


# --- the grader


def fit_grader(features: np.ndarray, grades: np.ndarray, weights: np.ndarray) -> frozen.Head:
    """Fit an ordinal regression to features [N, D], standardized by their weighted mean and deviation.

    grades: int [N], at least two different ones. weights: float [N].
    """
    mean = np.average(features, axis=0, weights=weights).astype(np.float32)
    scale = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights)).astype(np.float32)
    scale[scale == 0] = 1
    model = classifiers.OrdinalRegression(classifiers.ORDINAL_C).fit((features - mean) / scale, grades, weights)
    return frozen.Head(model.classes_, mean, scale, model.coef_, model.intercept_)


def _likelihood(photographs, grades, synthetic, labels) -> np.ndarray:
    """Return the probability of its requested grade for each synthetic image by a grader of photographs: float [K]."""
    rows = photographs.reshape(-1, photographs.shape[-1])
    weights = np.full(len(rows), WEIGHT_PER_PHOTOGRAPH / len(photographs))
    grader = fit_grader(rows, np.tile(grades, len(photographs)), weights)
    return grader.probabilities(synthetic[None], len(GRADES))[np.arange(len(labels)), labels]


# --- the arms


@dataclasses.dataclass(frozen=True)
class _Sets:
    """What graders are trained on.

    Attributes: photographs: features of variants, [V, N, D]; grades: int [N]. synthetic: features [K, D]; labels: their
      requested grades, int [K]; is_likely: bool [K], see `likeliest`.
    """

    photographs: np.ndarray
    grades: np.ndarray
    synthetic: np.ndarray
    labels: np.ndarray
    is_likely: np.ndarray


def likeliest(likelihood: np.ndarray, labels: np.ndarray, keep_share: float) -> np.ndarray:
    """Return which images the filter keeps: the likeliest share of each grade, at least one: bool [K]."""
    is_likely = np.zeros(len(labels), bool)
    for grade in np.unique(labels):
        members = np.flatnonzero(labels == grade)
        best_first = members[np.argsort(-likelihood[members], kind="stable")]
        is_likely[best_first[: math.ceil(keep_share * len(members))]] = True
    return is_likely


def choose_synthetic(
    arm: str, training_grades: np.ndarray, labels: np.ndarray, is_likely: np.ndarray, seed: int
) -> np.ndarray:
    """Return the places of an arm's synthetic images, int [n], at random; repeated where there are too few.

    Args: arm: of ARMS. training_grades: int [N]. labels: requested grades of the synthetic images, int [K].
      is_likely: bool [K], what the filter keeps.
    The images of "synthetic_balanced" are the first of those of "synthetic_twice" by the same seed.
    """
    counts = _counts(training_grades)
    wanted = {
        "synthetic_balanced": counts.max() - counts,
        "synthetic_twice": 2 * counts.max() - counts,
        "synthetic_only": np.full(len(GRADES), counts.max()),
    }.get(arm.removesuffix("_filtered"), np.zeros(len(GRADES), int))
    order = np.random.default_rng(seed).permutation(len(labels))
    if arm.endswith("_filtered"):
        order = order[is_likely[order]]
    return np.concatenate([np.resize(order[labels[order] == grade], count) for grade, count in enumerate(wanted)])


def _read_all(sets: _Sets, held_out: np.ndarray, seeds: int) -> dict[str, np.ndarray]:
    """Return the grades that graders of each arm read in held-out photographs [2, M, D]: {arm: int [seeds, M]}."""

    def read(arm, seed):
        features, grades, weights = _training_set(sets, arm, seed)
        grader = fit_grader(features, grades, weights)
        return metrics.read_classes(grader.probabilities(held_out, len(GRADES)))

    jobs = ((arm, seed) for arm in ARMS for seed in range(seeds))
    grades = np.stack(list(map_in_threads(read, jobs)))
    return dict(zip(ARMS, grades.reshape(len(ARMS), seeds, -1)))


def _training_set(sets: _Sets, arm: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that one grader is trained on: features [n, D], grades [n], weights [n].

    Each image of a grade has the same weight, which its variants share. Grades have the same total weight, but in
    "real" images do. The total is that of `WEIGHT_PER_PHOTOGRAPH`.
    """
    chosen = choose_synthetic(arm, sets.grades, sets.labels, sets.is_likely, seed)
    features, grades, weights = [sets.synthetic[chosen]], [sets.labels[chosen]], [np.ones(len(chosen))]
    if not arm.startswith("synthetic_only"):
        used = _half_of_each_grade(sets.grades, seed) if arm == "real_half" else np.arange(len(sets.grades))
        which = _variants(len(sets.grades), seed)[:, used]
        features.append(sets.photographs[which, used].reshape(-1, features[0].shape[-1]))
        grades.append(np.tile(sets.grades[used], len(which)))
        weights.append(np.full(which.size, 1 / len(which)))
    features, grades, weights = map(np.concatenate, (features, grades, weights))
    if arm != "real":
        weights = weights / np.bincount(grades, weights)[grades]
    return features, grades, weights * WEIGHT_PER_PHOTOGRAPH * len(sets.grades) / weights.sum()


def _half_of_each_grade(grades, seed) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(grades))
    return _first_of_each_grade(grades, -(-_counts(grades) // 2), order)


def _variants(count, seed) -> np.ndarray:
    """Return which variants of each photograph a grader is trained on, int [3, count]: plain, mirrored, and one of the
    augmented ones."""
    zero = np.zeros(count, int)
    return np.stack([zero, zero + 1, 2 + np.random.default_rng(seed).integers(NUM_AUGMENTED, size=count)])
