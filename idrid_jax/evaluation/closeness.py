"""How close generated images are to real photographs as sets, beside what real photographs, a mean image and noise get.

The reference is always the training photographs. The test split only gives the held-out row: nothing is chosen by it.
NumPy arrays in, plain Python out; no files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation import coverage, distances, diversity, intervals, spectra
from idrid_jax.evaluation.features.extractor import FeatureExtractor

ROWS = {  # in the table's order; keys of the result
    "generated": "generated x training",
    "generated_few": "as many generated as held-out x training",  # distances and coverage depend on how many there are
    "held_out_real": "held-out real x training",
    "halves": "half of training x other half",
    "mean_image": "mean training image, repeated, x training",
    "noise": "uniform noise x training",
}
MEASURES = {  # of each network's features, and of the pixels; key: (heading, what is better, decimals)
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
ALIKE = 128  # images of noise and of the repeated mean image, at most: more of the same tell no more
SAMPLE = 96  # images of a set whose pairs MS-SSIM takes: 4,560 pairs
BLOCK = 32  # sets are padded to a multiple, so that few shapes are compiled
TWITCH = 2  # grey levels, largest noise on the repeated mean image


def measure(
    generated: np.ndarray,
    generated_grades: np.ndarray | None,
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    *,
    networks: Sequence[FeatureExtractor],
    seed: int = 0,
    resamples: int = 200,
    most: int = 1000,
    keep: Callable[[FeatureExtractor, np.ndarray], np.ndarray] = lambda network, images: network.extract(images),
    note: Callable[[str], None] = lambda text: None,
) -> dict:
    """Closeness of generated images to training ones, pooled and per grade, with the rows of ROWS.

    Args:
        generated, training, held_out: uint8 [N, R, R, C], C and R alike. `generated` and `held_out` may be empty.
        generated_grades: int [N] in 0..4, or None: then there is no "by_grade". The others' likewise.
        networks: of features; their names stand beside every number they gave.
        seed: of halves, noise, resamples. resamples: of each interval (half as many for Frechet and Wasserstein).
        most: images of each set at most, drawn at random. keep: gives the features of photographs, which may be kept
        on disk. note: is told what is being measured.
    Returns: a dict for json.dumps: "rows" {row: {"images", "against", measure of pixels: entry, "features": {network:
        {measure: entry}}}}; an entry is {"value", "interval": [low, high] or None, "features"}, and without its images
        {"value": None, "interval": None, "missing": why}. "k" beside precision, recall, density and coverage, "scales"
        beside MS-SSIM, "levels" (value of each level of the pyramid, finest first) beside the sliced Wasserstein
        distance. KID in its own units (the table: x1000).
        Intervals are over images, 95 %; of precision and its like from halves of the sets (None where these are smaller
        than k); of these, Frechet, ratio and Wasserstein shifted to their estimate (see `intervals.interval`), which is
        itself larger for small sets; of the ratio with the real images held.
        "frechet_ratio": Frechet of n of the row's images and half of the training set, over that of n of the other half
        and the same; n is what both have, so that the size of the sets does not speak.
        "by_grade": {grade: the same rows within it}; "seed", "resamples", "networks", "given" and "images".
    Raises: ValueError for no training image, or what `extract` refuses.
    """
    if not len(training):
        raise ValueError("training holds no images; there is nothing to compare with")
    rng = np.random.default_rng(seed)
    sets, used = {}, {}
    for name, images, grades in (
        ("generated", generated, generated_grades),
        ("training", training, training_grades),
        ("held_out", held_out, held_out_grades),
    ):
        drawn = rng.permutation(len(images))[:most]  # also mixes them: rows take the first n
        used[name] = len(drawn)

        def extract(network, images, name=name):
            note(f"closeness: {name.replace('_', '-')} images by {network.name.partition(' ')[0]}")
            if not len(images):
                return np.zeros((0, 1))
            return _extract(network, images) if name == "generated" else keep(network, images)

        in_order = np.sort(drawn)  # what is kept must not depend on the seed
        whole = _set(np.asarray(images)[in_order], networks, extract)
        sets[name] = (
            _take(whole, np.searchsorted(in_order, drawn)),
            None if grades is None else np.asarray(grades)[drawn],
        )
    result = {"networks": [network.name for network in networks], "seed": seed, "resamples": resamples, "images": used}
    result["given"] = {"generated": len(generated), "training": len(training), "held_out": len(held_out)}
    common = {"networks": networks, "seed": seed, "resamples": resamples}
    note("closeness: all grades")
    result["rows"] = _rows(*(sets[name][0] for name in ("generated", "training", "held_out")), **common)
    if generated_grades is not None:
        result["by_grade"] = {}
        for grade, name in enumerate(GRADES):
            note(f"closeness: {name}")
            of_grade = [_take(sets[which][0], np.flatnonzero(sets[which][1] == grade)) for which in sets]
            result["by_grade"][name] = _rows(*of_grade, **common, of=f" of grade {name}")
    return result


@dataclass(frozen=True)
class _Set:
    images: np.ndarray
    spectra: np.ndarray
    features: dict[str, np.ndarray]  # of each network

    def __len__(self):
        return len(self.images)


def _extract(network, images):
    return network.extract(images)


def _set(images, networks, extract=_extract) -> _Set:
    of = lambda network: np.asarray(extract(network, images), np.float64)
    return _Set(images, spectra.radial_spectrum(images), {network.name: of(network) for network in networks})


def _take(a_set, index) -> _Set:
    features = {name: found[index] for name, found in a_set.features.items()}
    return _Set(a_set.images[index], a_set.spectra[index], features)


def _rows(generated, training, held_out, *, networks, seed, resamples, of=""):
    count = len(training)
    rng = np.random.default_rng(seed)
    halves = _take(training, slice(0, count // 2)), _take(training, slice(count // 2, None))
    few = _take(generated, slice(0, len(held_out))), training
    rows = {"generated": (generated, training), "generated_few": few, "held_out_real": (held_out, training)}
    rows["halves"] = halves
    if count:
        shape = (min(count, ALIKE), *training.images.shape[1:])
        mean = training.images.mean(axis=0) + rng.integers(-TWITCH, TWITCH + 1, size=shape)
        rows["mean_image"] = _set(np.clip(np.rint(mean), 0, 255).astype(np.uint8), networks), training
        rows["noise"] = _set(rng.integers(0, 256, size=shape, dtype=np.uint8), networks), training
    else:
        rows |= {"mean_image": (training, training), "noise": (training, training)}
    names = {"generated": "generated", "generated_few": "generated (as many as held-out)", "held_out_real": "held-out"}
    out = {}
    for number, (key, (a, b)) in enumerate(rows.items()):
        who = names.get(key, "training")

        def measured(*parts):
            found = {}
            for part in parts:
                try:
                    found |= part(np.random.default_rng([seed, number + 1]))
                except _Lacking as lacking:
                    left, least = lacking.args
                    why = f"{len(a)} {who} and {len(b)} training images{of}; it takes at least {least} of each"
                    found |= {name: {"value": None, "interval": None, "missing": why} for name in left}
            return found

        out[key] = {"images": len(a), "against": len(b), "features": {}}
        out[key] |= measured(lambda r: _within(a.images, r, resamples), lambda r: _by_pixels(a, b, r, resamples, seed))
        for name in (network.name for network in networks):
            x, y, half, other = (one.features[name] for one in (a, b, *halves))
            out[key]["features"][name] = measured(
                lambda r: _by_features(x, y, r, resamples, name),
                lambda r: _ratio(x, half, other, r, resamples, name),
                lambda r: _prdc(x, y, r, resamples, name),
            )
    return out


class _Lacking(Exception):
    """(measures, how many images they need)."""


def _need(least, names, *sets):
    if min(len(s) for s in sets) < least:
        raise _Lacking(names, least)


def _entry(value, interval, features, **more):
    return {"value": float(value), "interval": interval, "features": features, **more}


def _by_features(a, b, rng, resamples, features):
    _need(2, ("kid", "frechet"), a, b)
    kernels = [distances.polynomial_kernel(*pair) for pair in ((a, a), (b, b), (a, b))]
    draws = list(zip(intervals.counts(rng, len(a), resamples), intervals.counts(rng, len(b), resamples)))
    kids = [distances.mmd2(*kernels, u, v) for u, v in draws]
    value = distances.frechet(a, b)
    drawn = [distances.frechet(a, b, u, v) for u, v in draws[: resamples // 2]]
    return {
        "kid": _entry(distances.mmd2(*kernels), intervals.interval(kids), features),
        "frechet": _entry(value, intervals.interval(drawn, centre=value, floor=0), features),
    }


def _ratio(a, half, other, rng, resamples, features):
    _need(2, ("frechet_ratio",), a, half, other)
    n = min(len(a), len(half))
    real = distances.frechet(half[:n], other)
    if real == 0:
        raise _Lacking(("frechet_ratio",), "2 unlike")
    value = distances.frechet(a[:n], other) / real
    draws = intervals.counts(rng, n, resamples // 2)
    drawn = [distances.frechet(a[:n], other, u) / real for u in draws]
    return {"frechet_ratio": _entry(value, intervals.interval(drawn, centre=value, floor=0), features, images=n)}


def _prdc(a, b, rng, resamples, features):
    _need(2, ("precision", "recall", "density", "coverage"), a, b)
    k = coverage.choose_k(min(len(a), len(b)))
    aa, bb, ab = (coverage.distances(*pair) for pair in ((a, a), (b, b), (a, b)))
    values = {name: v.mean() for name, v in coverage.prdc(aa, bb, ab, k=k).items()}
    drawn = {name: [] for name in values}
    if min(len(a), len(b)) // 2 > k:  # halves without replacement: their spread is that of the whole sets
        for _ in range(resamples):
            i, j = (rng.permutation(len(one))[: len(one) // 2] for one in (a, b))
            for name, v in coverage.prdc(aa[np.ix_(i, i)], bb[np.ix_(j, j)], ab[np.ix_(i, j)], k=k).items():
                drawn[name].append(v.mean())
    most = {"density": np.inf}
    return {
        name: _entry(
            value, intervals.interval(drawn[name], centre=value, floor=0, most=most.get(name, 1)), features, k=k
        )
        for name, value in values.items()
    }


def _within(images, rng, resamples):
    _need(2, ("ms_ssim",), images)
    used = min(len(images), SAMPLE)
    padded = np.resize(images[:used], (-(-used // BLOCK) * BLOCK, *images.shape[1:])).astype(np.float32) / 255
    pairs = diversity.ms_ssim_pairs(padded, padded)[:used, :used]
    drawn = [distances.within(pairs, u.astype(float)) for u in intervals.counts(rng, used, resamples)]
    more = {"scales": diversity.scales(min(images.shape[1:3])), "images": used}
    return {"ms_ssim": _entry(distances.within(pairs, np.ones(used)), intervals.interval(drawn), PIXELS, **more)}


def _by_pixels(a, b, rng, resamples, seed):
    _need(2, ("sliced_wasserstein", "spectrum"), a, b)
    draws = list(zip(intervals.counts(rng, len(a), resamples), intervals.counts(rng, len(b), resamples)))
    pairs = spectra.slices(a.images, b.images, seed=seed)
    levels = spectra.sliced_wasserstein(pairs)
    value = np.mean(levels)
    drawn = [np.mean(spectra.sliced_wasserstein(pairs, u, v)) for u, v in draws[: resamples // 2]]
    power = spectra.spectrum_distance(a.spectra, b.spectra)
    powers = [spectra.spectrum_distance(a.spectra, b.spectra, u, v) for u, v in draws]
    return {
        "sliced_wasserstein": _entry(value, intervals.interval(drawn, centre=value, floor=0), PIXELS, levels=levels),
        "spectrum": _entry(power, intervals.interval(powers, centre=power, floor=0), PIXELS),
    }


# --- text


def table(result: dict) -> str:
    """Renders what `measure` returned for a console, also when read back from JSON; no newline at the end."""
    used = result["images"]
    lines = ["Closeness. 95 % intervals over images.", "", *_table(result["rows"], result["networks"])]
    for name, rows in result.get("by_grade", {}).items():
        lines += ["", name, *_table(rows, result["networks"])]
    lines += [
        "",
        f"Images used: {used['generated']} generated, {used['training']} training, {used['held_out']} held-out real.",
        "Read as many generated against held-out real: that is what photographs get, and numbers count.",
        "Ratio 1: as far from half of training as its other half is. No row says that lesions or vessels are right:",
        "the grader's features know its training photographs. Of so many intervals one in twenty is wrong by chance.",
    ]
    return "\n".join(lines)


def _table(rows, networks):
    parts = [
        (f"features: {name}", MEASURES["features"], lambda row, name=name: row["features"][name]) for name in networks
    ]
    parts.append(("pixels", MEASURES["pixels"], lambda row: row))
    captions = {key: f"{caption} ({rows[key]['images']} x {rows[key]['against']})" for key, caption in ROWS.items()}
    width = max(map(len, [*captions.values(), *(title for title, *_ in parts)]))
    lines, reasons = [], set()
    for title, measures, entries in parts:
        cells = {}
        for key, caption in captions.items():
            of = entries(rows[key])
            reasons |= {of[name]["missing"] for name in measures if "missing" in of[name]}
            cells[caption] = [_cell(of[n], 1000 if n == "kid" else 1, measures[n][2]) for n in measures]
        widths = [
            max(len(heading), len(good), *(len(row[i]) for row in cells.values()))
            for i, (heading, good, _) in enumerate(measures.values())
        ]
        show = lambda first, row: f"{first:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(row, widths))
        lines.append(show(title, [heading for heading, *_ in measures.values()]))
        lines.append(show("good:", [good for _, good, _ in measures.values()]))
        lines += [show(caption, row) for caption, row in cells.items()]
    return lines + [f"-: {reason}" for reason in sorted(reasons)]


def _cell(entry, factor, decimals):
    if entry["value"] is None:
        return "-"
    text = f"{entry['value'] * factor:.{decimals}f}"
    if entry["interval"] is None:
        return text
    low, high = (f"{bound * factor:.{decimals}f}" for bound in entry["interval"])
    return f"{text} [{low}, {high}]"
