"""How close generated images are to real photographs as sets, beside what real photographs, a mean image and noise get.

The reference is always the training photographs. The test split only gives the held-out row: nothing is chosen by it.
NumPy arrays in, plain Python out; no files.
"""

from collections.abc import Callable

import numpy as np

from idrid_jax.data.release import GRADES
from idrid_jax.evaluation import bootstrap, coverage, distances, diversity, spectra

ROWS = {  # in the table's order; keys of the result
    "generated": "generated x training",
    "held_out_real": "held-out real x training",
    "halves": "half of training x other half",
    "mean_image": "mean training image, repeated, x training",
    "noise": "uniform noise x training",
}
MEASURES = {  # key: (heading, what is better, decimals)
    "kid": ("KID x1000", "low", 1),
    "frechet": ("Frechet", "low", 2),
    "frechet_ratio": ("ratio to real", "1", 1),
    "precision": ("precision", "high", 2),
    "recall": ("recall", "high", 2),
    "density": ("density", "about 1", 2),
    "coverage": ("coverage", "high", 2),
    "ms_ssim": ("MS-SSIM within", "as real", 2),
    "sliced_wasserstein": ("sliced W.", "low", 2),
    "spectrum": ("spectrum dB", "low", 1),
}
PIXELS = "none (pixels)"
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
    extract: Callable[[np.ndarray], np.ndarray],
    features: str,
    seed: int = 0,
    resamples: int = 200,
    most: int = 1000,
    note: Callable[[str], None] = lambda text: None,
) -> dict:
    """Closeness of generated images to training ones, pooled and per grade, with the rows of ROWS.

    Args:
        generated, training, held_out: uint8 [N, R, R, C], C and R alike. `generated` and `held_out` may be empty.
        generated_grades: int [N] in 0..4, or None: then there is no "by_grade". The others' likewise.
        extract: uint8 [N, R, R, C] -> float [N, D]. features: their name, written beside every number they gave.
        seed: of halves, noise, resamples. resamples: of each interval (half as many for Frechet and Wasserstein).
        most: images of each set at most, drawn at random. note: is told what is being measured.
    Returns: a dict for json.dumps. {row: {measure: {"value", "interval": [low, high] or None, "features"}}}, each row
        with "images" and "against"; a measure without its images is {"value": None, "interval": None, "missing": why}.
        "k" beside precision, recall, density and coverage, "scales" beside MS-SSIM, "levels" (value of each level of
        the pyramid, finest first) beside the sliced Wasserstein distance. KID in its own units (the table: x1000).
        Intervals are over images, 95 %; of precision and its like with the balls held, of Frechet, ratio and
        Wasserstein shifted to their estimate (see `bootstrap.interval`), of the ratio with the real images held.
        "frechet_ratio": Frechet of n of the row's images and half of the training set, over that of n of the other half
        and the same; n is what both have, so that the size of the sets does not speak.
        "by_grade": {grade: the same rows within it}; "seed", "resamples", "features", "given" and "images".
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
        kept = rng.permutation(len(images))[:most]  # also mixes them: rows take the first n
        images = np.asarray(images)[kept]
        used[name] = len(images)
        sets[name] = _set(images, extract), None if grades is None else np.asarray(grades)[kept]
    result = {"features": features, "seed": seed, "resamples": resamples, "images": used}
    result["given"] = {"generated": len(generated), "training": len(training), "held_out": len(held_out)}
    common = {"extract": extract, "features": features, "seed": seed, "resamples": resamples}
    note("closeness: all grades")
    result |= _rows(*(sets[name][0] for name in ("generated", "training", "held_out")), **common)
    if generated_grades is not None:
        result["by_grade"] = {}
        for grade, name in enumerate(GRADES):
            note(f"closeness: {name}")
            of_grade = [_take(sets[which][0], np.flatnonzero(sets[which][1] == grade)) for which in sets]
            result["by_grade"][name] = _rows(*of_grade, **common, of=f" of grade {name}")
    return result


# --- sets are (images, features, spectra)


def _set(images, extract):
    found = np.asarray(extract(images), np.float64) if len(images) else np.zeros((0, 1))
    return images, found, spectra.radial_spectrum(images)


def _take(a_set, index):
    return tuple(part[index] for part in a_set)


def _rows(generated, training, held_out, *, extract, features, seed, resamples, of=""):
    count = len(training[0])
    rng = np.random.default_rng(seed)
    halves = _take(training, slice(0, count // 2)), _take(training, slice(count // 2, None))
    rows = {"generated": (generated, training), "held_out_real": (held_out, training), "halves": halves}
    if count:
        shape = training[0].shape
        mean = training[0].mean(axis=0) + rng.integers(-TWITCH, TWITCH + 1, size=shape)
        rows["mean_image"] = _set(np.clip(np.rint(mean), 0, 255).astype(np.uint8), extract), training
        rows["noise"] = _set(rng.integers(0, 256, size=shape, dtype=np.uint8), extract), training
    else:
        rows |= {"mean_image": (training, training), "noise": (training, training)}
    names = {"generated": "generated", "held_out_real": "held-out"}
    out = {}
    for key, (a, b) in rows.items():
        who = names.get(key, "training")
        out[key] = {"images": len(a[0]), "against": len(b[0])}
        for measures in (
            lambda r: _by_features(a[1], b[1], r, resamples, features),
            lambda r: _ratio(a[1], *(half[1] for half in halves), r, resamples, features),
            lambda r: _prdc(a[1], b[1], r, resamples, features),
            lambda r: _within(a[0], r, resamples),
            lambda r: _by_pixels(a, b, r, resamples, seed),
        ):
            try:
                out[key] |= measures(np.random.default_rng([seed, len(out)]))
            except _Lacking as lacking:
                names_left, least = lacking.args
                why = f"{len(a[0])} {who} and {len(b[0])} training images{of}; it takes at least {least} of each"
                out[key] |= {name: {"value": None, "interval": None, "missing": why} for name in names_left}
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
    draws = list(zip(bootstrap.counts(rng, len(a), resamples), bootstrap.counts(rng, len(b), resamples)))
    kids = [distances.mmd2(*kernels, u, v) for u, v in draws]
    value = distances.frechet(a, b)
    drawn = [distances.frechet(np.repeat(a, u, axis=0), np.repeat(b, v, axis=0)) for u, v in draws[: resamples // 2]]
    return {
        "kid": _entry(distances.mmd2(*kernels), bootstrap.interval(kids), features),
        "frechet": _entry(value, bootstrap.interval(drawn, centre=value, floor=0), features),
    }


def _ratio(a, half, other, rng, resamples, features):
    _need(2, ("frechet_ratio",), a, half, other)
    n = min(len(a), len(half))
    real = distances.frechet(half[:n], other)
    if real == 0:
        raise _Lacking(("frechet_ratio",), "2 unlike")
    value = distances.frechet(a[:n], other) / real
    draws = bootstrap.counts(rng, n, resamples // 2)
    drawn = [distances.frechet(np.repeat(a[:n], u, axis=0), other) / real for u in draws]
    return {"frechet_ratio": _entry(value, bootstrap.interval(drawn, centre=value, floor=0), features, images=n)}


def _prdc(a, b, rng, resamples, features):
    _need(2, ("precision", "recall", "density", "coverage"), a, b)
    k = coverage.choose_k(min(len(a), len(b)))
    values = coverage.prdc(*(coverage.distances(*pair) for pair in ((a, a), (b, b), (a, b))), k=k)
    return {name: _entry(v.mean(), bootstrap.of_mean(v, rng, resamples), features, k=k) for name, v in values.items()}


def _within(images, rng, resamples):
    _need(2, ("ms_ssim",), images)
    used = min(len(images), SAMPLE)
    padded = np.resize(images[:used], (-(-used // BLOCK) * BLOCK, *images.shape[1:])).astype(np.float32) / 255
    pairs = diversity.ms_ssim_pairs(padded, padded)[:used, :used]
    drawn = [distances.within(pairs, u.astype(float)) for u in bootstrap.counts(rng, used, resamples)]
    more = {"scales": diversity.scales(min(images.shape[1:3])), "images": used}
    return {"ms_ssim": _entry(distances.within(pairs, np.ones(used)), bootstrap.interval(drawn), PIXELS, **more)}


def _by_pixels(a, b, rng, resamples, seed):
    _need(2, ("sliced_wasserstein", "spectrum"), a[0], b[0])
    draws = list(zip(bootstrap.counts(rng, len(a[0]), resamples), bootstrap.counts(rng, len(b[0]), resamples)))
    pairs = spectra.slices(a[0], b[0], seed=seed)
    levels = spectra.sliced_wasserstein(pairs)
    value = np.mean(levels)
    drawn = [np.mean(spectra.sliced_wasserstein(pairs, u, v)) for u, v in draws[: resamples // 2]]
    power = spectra.spectrum_distance(a[2], b[2])
    powers = [spectra.spectrum_distance(a[2], b[2], u, v) for u, v in draws]
    return {
        "sliced_wasserstein": _entry(value, bootstrap.interval(drawn, centre=value, floor=0), PIXELS, levels=levels),
        "spectrum": _entry(power, bootstrap.interval(powers, centre=power, floor=0), PIXELS),
    }


# --- text


def table(result: dict) -> str:
    """Renders what `measure` returned for a console, also when read back from JSON; no newline at the end."""
    used = result["images"]
    lines = [f"Closeness. Features: {result['features']}. 95 % intervals over images.", *_table(result)]
    for name, rows in result.get("by_grade", {}).items():
        lines += ["", name, *_table(rows)]
    lines += [
        "",
        f"Images used: {used['generated']} generated, {used['training']} training, {used['held_out']} held-out real.",
        "Read each row against held-out real: that is what photographs get. The features were never trained, so no",
        "row says that lesions or vessels are right. Ratio 1: as far from half of training as its other half is.",
    ]
    return "\n".join(lines)


def _table(rows):
    shown = {}
    for key, caption in ROWS.items():
        entry = rows[key]
        shown[f"{caption} ({entry['images']} x {entry['against']})"] = {
            name: _cell(entry[name], 1000 if name == "kid" else 1, decimals)
            for name, (_, _, decimals) in MEASURES.items()
        }
    width = max(map(len, shown))
    lines = []
    names = list(MEASURES)
    for part in (names[:5], names[5:]):
        columns = {
            n: max([len(MEASURES[n][0]), len(MEASURES[n][1]), *(len(cells[n]) for cells in shown.values())])
            for n in part
        }
        for which, first in ((0, ""), (1, "good:")):
            lines.append(f"{first:<{width}}" + "".join(f"  {MEASURES[n][which]:>{w}}" for n, w in columns.items()))
        for caption, cells in shown.items():
            lines.append(f"{caption:<{width}}" + "".join(f"  {cells[n]:>{w}}" for n, w in columns.items()))
    reasons = {f"{e['missing']}" for key in ROWS for e in rows[key].values() if isinstance(e, dict) and "missing" in e}
    return lines + [f"-: {reason}" for reason in sorted(reasons)]


def _cell(entry, factor, decimals):
    if entry["value"] is None:
        return "-"
    text = f"{entry['value'] * factor:.{decimals}f}"
    if entry["interval"] is None:
        return text
    low, high = (f"{bound * factor:.{decimals}f}" for bound in entry["interval"])
    return f"{text} [{low}, {high}]"
