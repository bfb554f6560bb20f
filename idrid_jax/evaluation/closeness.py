"""Closeness: how close is the set of generated images to the set of training photographs?

Each number stands next to the same one of held-out photographs, of two halves of the training set, of the repeated mean
image and of noise. The held-out row is the reference to beat; noise and the mean image show what a measure cannot see.
The measures themselves are in `distances` (KID, Frechet), `coverage` (precision, recall, density, coverage),
`diversity` (MS-SSIM) and `spectra` (sliced Wasserstein, power spectrum). The held-out photographs (the test split, or
fold `config.data.held_out_fold`) only give their row: nothing is chosen by them. NumPy arrays in, plain Python out; no
files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation import coverage, distances, diversity, intervals, spectra
from idrid_jax.evaluation.features.extractor import FeatureExtractor

ROWS = {  # in the table's order; keys of the result
    "generated": "generated x training",
    "generated_few": "as many generated as held-out x training",  # several measures depend on the number of images
    "held_out_real": "held-out real x training",
    "halves": "half of training x other half",
    "mean_image": "mean training image, repeated, x training",
    "noise": "uniform noise x training",
}
MEASURES = {  # of each extractor's features, and of the pixels; key: (heading, what is better, decimals)
    "features": {
        "kid": ("KID x1000", "low", 1),
        "frechet": ("Frechet", "low", 2),
        "frechet_ratio": ("ratio to real", "1", 1),
        "precision": ("precision", "high", 2),
        "recall": ("recall", "high", 2),
        "density": ("density", "about 1", 2),
        "coverage": ("coverage", "high", 2),
    },
    "pixels": {
        "ms_ssim": ("MS-SSIM within", "as real", 2),
        "sliced_wasserstein": ("sliced W.", "low", 2),
        "spectrum": ("spectrum dB", "low", 1),
    },
}
PIXELS = "none (pixels)"
NUM_REFERENCE = 128  # images of noise and of the repeated mean image, at most: more add no information
NUM_MS_SSIM = 96  # images whose pairs MS-SSIM compares, at most: 4,560 pairs
BLOCK = 32  # sets are padded to a multiple, so that few shapes are compiled
MEAN_IMAGE_NOISE = 2  # grey levels, largest noise on the repeated mean image


def measure(
    generated: np.ndarray,
    generated_grades: np.ndarray | None,
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    *,
    extractors: Sequence[FeatureExtractor],
    seed: int = 0,
    resamples: int = 200,
    max_images: int = 1000,
    trained_against: Sequence[str] = (),
    photograph_features: Callable[[FeatureExtractor, np.ndarray], np.ndarray] = lambda e, images: e.extract(images),
    log: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measure the closeness of generated images to training photographs, of all grades and by grade, for each of ROWS.

    Args:
      generated, training, held_out: uint8 [N, R, R, C], C and R alike. `generated` and `held_out` may be empty.
      ..._grades: int [N] in 0..4; generated_grades None: no "by_grade".
      extractors: feature extractors; their names are the keys of their numbers.
      seed: of halves, noise and resamples. resamples: of each interval (half as many for Frechet and Wasserstein).
      max_images: of each set, sampled at random. photograph_features: returns the features of photographs, of their
        mean and of noise, perhaps from a cache. log: receives a line for each stage.
      trained_against: networks that the generator was trained against: its numbers on them are biased in its favor.
    Returns: for json.dumps: "rows" {row: {"images", "against", measure of pixels: entry, "features": {extractor:
      {measure: entry}}}}; an entry is {"value", "interval": [low, high] or None, "features"}, or without enough images
      {"value": None, "interval": None, "missing": why}. "k" of precision, recall, density and coverage, "scales" of
      MS-SSIM, "levels" (value of each level of the pyramid, finest first) of the sliced Wasserstein distance. KID in
      its own units (the table: x1000).
      Intervals are of 95 %, over images; those of precision and its like by halves of the sets (None if these are not
      larger than k). These and those of Frechet, ratio and Wasserstein are shifted to their estimate (see
      `intervals.percentile_interval`), which itself grows for small sets; for the ratio, the real images are fixed.
      "frechet_ratio": Frechet distance of n of the row's images to half of the training set, over that of n of the
      other half; n is as many as both have, so that the size of the sets cancels.
      "by_grade": {grade: the same rows within it}; "seed", "resamples", "networks", "trained_against" (those
      of "networks"), "given" and "images".
    Raises: ValueError for no training image, or where `extract` does.
    """
    if not len(training):
        raise ValueError("training holds no images; there is nothing to compare with")
    rng = np.random.default_rng(seed)
    sets, grades, used = {}, {}, {}
    for name, images, image_grades in (
        ("generated", generated, generated_grades),
        ("training", training, training_grades),
        ("held_out", held_out, held_out_grades),
    ):
        chosen = rng.permutation(len(images))[:max_images]  # also shuffles: rows use the first n
        used[name] = len(chosen)
        in_order = np.sort(chosen)  # what is cached must not depend on the seed
        extract = _extract if name == "generated" else photograph_features
        whole = _set(np.asarray(images)[in_order], extractors, extract, lambda e, n=name: log(_stage(n, e)))
        sets[name] = whole[np.searchsorted(in_order, chosen)]
        grades[name] = None if image_grades is None else np.asarray(image_grades)[chosen]
    result = {"networks": [extractor.name for extractor in extractors], "seed": seed, "resamples": resamples}
    result["trained_against"] = [extractor.name for extractor in extractors if extractor.network in trained_against]
    result |= {"images": used, "given": dict(zip(sets, map(len, (generated, training, held_out))))}
    options = {"extractors": extractors, "extract": photograph_features, "seed": seed, "resamples": resamples}
    log("closeness: all grades")
    result["rows"] = _rows(*sets.values(), **options)
    if generated_grades is not None:
        result["by_grade"] = {}
        for grade, name in enumerate(GRADES):
            log(f"closeness: {name}")
            grade_sets = [images[np.flatnonzero(grades[which] == grade)] for which, images in sets.items()]
            result["by_grade"][name] = _rows(*grade_sets, **options, suffix=f" of grade {name}")
    return result


def _stage(name, extractor):
    return f"closeness: {name.replace('_', '-')} images by {extractor.name.partition(' ')[0]}"


# --- sets and rows


@dataclass(frozen=True)
class _Set:
    images: np.ndarray
    spectra: np.ndarray
    features: dict[str, np.ndarray]  # by extractor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index) -> "_Set":
        features = {name: values[index] for name, values in self.features.items()}
        return _Set(self.images[index], self.spectra[index], features)


def _extract(extractor, images):
    return extractor.extract(images)


def _set(images, extractors, extract=_extract, before=lambda extractor: None) -> _Set:
    features = {}
    for extractor in extractors:
        before(extractor)
        extracted = extract(extractor, images) if len(images) else np.zeros((0, 1))
        features[extractor.name] = np.asarray(extracted, np.float64)
    return _Set(images, spectra.radial_spectrum(images), features)


def _rows(generated, training, held_out, *, extractors, extract, seed, resamples, suffix=""):
    halves = training[: len(training) // 2], training[len(training) // 2 :]
    mean_image, noise = _references(training, extractors, extract, np.random.default_rng(seed))
    rows = {  # key: (what it is called where it lacks images, its images, those it is compared with)
        "generated": ("generated", generated, training),
        "generated_few": ("generated (as many as held-out)", generated[: len(held_out)], training),
        "held_out_real": ("held-out", held_out, training),
        "halves": ("training", *halves),
        "mean_image": ("training", mean_image, training),
        "noise": ("training", noise, training),
    }
    out = {}
    for number, (key, (name, a, b)) in enumerate(rows.items()):
        images = f"{len(a)} {name} and {len(b)} training images{suffix}"
        entropy = [seed, number + 1]  # every measure of a row gets the same stream
        out[key] = {"images": len(a), "against": len(b), "features": {}}
        out[key] |= _or_missing(images, _ms_ssim, a.images, np.random.default_rng(entropy), resamples)
        out[key] |= _or_missing(images, _pixel_distances, a, b, np.random.default_rng(entropy), resamples, seed)
        for extractor in extractors:
            x, y, half, other = (part.features[extractor.name] for part in (a, b, *halves))
            parts = ((_feature_distances, x, y), (_frechet_ratio, x, half, other), (_neighbors, x, y))
            entries = out[key]["features"][extractor.name] = {}
            for function, *sets in parts:
                entries |= _or_missing(images, function, *sets, np.random.default_rng(entropy), resamples, extractor)
    return out


def _references(training, extractors, extract, rng) -> tuple[_Set, _Set]:
    """Return the repeated mean training image, and noise."""
    if not len(training):
        return training, training
    shape = (min(len(training), NUM_REFERENCE), *training.images.shape[1:])
    mean = training.images.mean(axis=0) + rng.integers(-MEAN_IMAGE_NOISE, MEAN_IMAGE_NOISE + 1, size=shape)
    images = np.clip(np.rint(mean), 0, 255).astype(np.uint8), rng.integers(0, 256, size=shape, dtype=np.uint8)
    mean_image, noise = (_set(some, extractors, extract) for some in images)
    return mean_image, noise


# --- entries


class _TooFew(Exception):
    """(measures, how many images they need)."""


def _or_missing(images, function, *args) -> dict:
    """Return function(*args), {measure: entry}; where it needs more images, the entries with the reason."""
    try:
        return function(*args)
    except _TooFew as error:
        measures, needed = error.args
        why = f"{images}; at least {needed} of each are needed"
        return {name: {"value": None, "interval": None, "missing": why} for name in measures}


def _need(needed, measures, *sets):
    if min(len(s) for s in sets) < needed:
        raise _TooFew(measures, needed)


def _entry(value, interval, features, **more):
    return {"value": float(value), "interval": interval, "features": features, **more}


def _feature_distances(a, b, rng, resamples, extractor):
    _need(2, ("kid", "frechet"), a, b)
    scaled = [features / extractor.kid_scale for features in (a, b)]
    kernels = [distances.polynomial_kernel(scaled[i], scaled[j]) for i, j in ((0, 0), (1, 1), (0, 1))]
    counts = [intervals.resample_counts(rng, len(features), resamples) for features in (a, b)]
    kids = [distances.mmd2(*kernels, u, v) for u, v in zip(*counts)]
    value = distances.frechet(a, b)
    values = [distances.frechet(a, b, u, v) for u, v in list(zip(*counts))[: resamples // 2]]
    interval = intervals.percentile_interval(values, center=value, minimum=0)
    return {
        "kid": _entry(distances.mmd2(*kernels), intervals.percentile_interval(kids), extractor.name),
        "frechet": _entry(value, interval, extractor.name),
    }


def _frechet_ratio(a, half, other, rng, resamples, extractor):
    _need(2, ("frechet_ratio",), a, half, other)
    n = min(len(a), len(half))
    real = distances.frechet(half[:n], other)
    if real == 0:
        raise _TooFew(("frechet_ratio",), "2 different ones")
    value = distances.frechet(a[:n], other) / real
    counts = intervals.resample_counts(rng, n, resamples // 2)
    values = [distances.frechet(a[:n], other, u) / real for u in counts]
    interval = intervals.percentile_interval(values, center=value, minimum=0)
    return {"frechet_ratio": _entry(value, interval, extractor.name, images=n)}


def _neighbors(a, b, rng, resamples, extractor):
    _need(2, ("precision", "recall", "density", "coverage"), a, b)
    k = coverage.choose_k(min(len(a), len(b)))
    aa, bb, ab = (coverage.distances(*pair) for pair in ((a, a), (b, b), (a, b)))
    estimates = {name: values.mean() for name, values in coverage.prdc(aa, bb, ab, k=k).items()}
    resampled = {name: [] for name in estimates}
    if min(len(a), len(b)) // 2 > k:  # halves without replacement: their spread is that of the whole sets
        for _ in range(resamples):
            i, j = (rng.permutation(len(features))[: len(features) // 2] for features in (a, b))
            half = coverage.prdc(aa[np.ix_(i, i)], bb[np.ix_(j, j)], ab[np.ix_(i, j)], k=k)
            for name, values in half.items():
                resampled[name].append(values.mean())
    out = {}
    for name, value in estimates.items():
        maximum = np.inf if name == "density" else 1
        interval = intervals.percentile_interval(resampled[name], center=value, minimum=0, maximum=maximum)
        out[name] = _entry(value, interval, extractor.name, k=k)
    return out


def _ms_ssim(images, rng, resamples):
    _need(2, ("ms_ssim",), images)
    used = min(len(images), NUM_MS_SSIM)
    padded = np.resize(images[:used], (-(-used // BLOCK) * BLOCK, *images.shape[1:])).astype(np.float32) / 255
    pairs = diversity.ms_ssim_pairs(padded, padded)[:used, :used]
    counts = intervals.resample_counts(rng, used, resamples)
    values = [distances.mean_over_pairs(pairs, u.astype(float)) for u in counts]
    value = distances.mean_over_pairs(pairs, np.ones(used))
    more = {"scales": diversity.num_scales(min(images.shape[1:3])), "images": used}
    return {"ms_ssim": _entry(value, intervals.percentile_interval(values), PIXELS, **more)}


def _pixel_distances(a, b, rng, resamples, seed):
    _need(2, ("sliced_wasserstein", "spectrum"), a, b)
    counts = list(zip(*(intervals.resample_counts(rng, len(images), resamples) for images in (a, b))))
    pairs = spectra.slices(a.images, b.images, seed=seed)
    levels = spectra.sliced_wasserstein(pairs)
    value = np.mean(levels)
    values = [np.mean(spectra.sliced_wasserstein(pairs, u, v)) for u, v in counts[: resamples // 2]]
    interval = intervals.percentile_interval(values, center=value, minimum=0)
    power = spectra.spectrum_distance(a.spectra, b.spectra)
    powers = [spectra.spectrum_distance(a.spectra, b.spectra, u, v) for u, v in counts]
    power_interval = intervals.percentile_interval(powers, center=power, minimum=0)
    return {
        "sliced_wasserstein": _entry(value, interval, PIXELS, levels=levels),
        "spectrum": _entry(power, power_interval, PIXELS),
    }


# --- text


def table(result: dict) -> str:
    """Render what `measure` returned as text, without a newline at the end."""
    used = result["images"]
    networks = {name: mark_network(result, name) for name in result["networks"]}
    lines = ["Closeness. 95 % intervals over images.", "", *_table(result["rows"], networks)]
    for name, rows in result.get("by_grade", {}).items():
        lines += ["", name, *_table(rows, networks)]
    lines += [
        "",
        f"Images used: {used['generated']} generated, {used['training']} training, {used['held_out']} held-out real.",
        "Compare the row with as many generated images as held-out ones with that of the held-out photographs.",
        "Ratio 1: as far from half of training as the other half is. No row proves that lesions or vessels are right.",
        "One in twenty intervals is wrong by chance.",
    ]
    return "\n".join(lines)


def mark_network(result: dict, name: str) -> str:
    """Return the name of a network of a result of `measure`, with a remark if the generator was trained against it."""
    return f"{name}, trained against" if name in result.get("trained_against", ()) else name


def _table(rows, networks):
    parts = [
        (f"features: {title}", "features", {key: rows[key]["features"][name] for key in ROWS})
        for name, title in networks.items()
    ]
    parts.append(("pixels", "pixels", rows))
    captions = {key: f"{caption} ({rows[key]['images']} x {rows[key]['against']})" for key, caption in ROWS.items()}
    width = max(map(len, [*captions.values(), *(title for title, *_ in parts)]))
    lines, reasons = [], set()
    for title, kind, entries in parts:
        measures = MEASURES[kind]
        reasons |= {
            entries[key][name]["missing"] for key in ROWS for name in measures if "missing" in entries[key][name]
        }
        grid = [[title, *(heading for heading, *_ in measures.values())], ["good:", *(m[1] for m in measures.values())]]
        for key, caption in captions.items():
            cells = [_cell(entries[key][n], 1000 if n == "kid" else 1, measures[n][2]) for n in measures]
            grid.append([caption, *cells])
        widths = [max(map(len, column)) for column in list(zip(*grid))[1:]]
        for first, *cells in grid:
            lines.append(f"{first:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths)))
    return lines + [f"-: {reason}" for reason in sorted(reasons)]


def _cell(entry, factor, decimals):
    if entry["value"] is None:
        return "-"
    text = f"{entry['value'] * factor:.{decimals}f}"
    if entry["interval"] is None:
        return text
    low, high = (f"{bound * factor:.{decimals}f}" for bound in entry["interval"])
    return f"{text} [{low}, {high}]"
