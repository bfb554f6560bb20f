"""Augmentation leak: has the augmentation of the discriminator's input leaked into generated images?

`training.augment` rotates, shifts, zooms and recolors what the discriminator sees; with a high probability p the
generator may learn to generate such images itself (Karras et al. 2020, "Training Generative Adversarial Networks with
Limited Data", section 2.2). Features of networks hardly notice a rotation of ten degrees, so a few plain statistics
that the augmentation changes are compared with those of real photographs. Each is one number per image: the distance of
two sets needs no model, and its p-value is that of a permutation test.

A generator may differ from photographs in all of them for other reasons (a blurred one has little contrast). Real
photographs, augmented as the discriminator saw them, tell the two apart: a leak moves a statistic in their direction.

What it detects: half of IDRiD's training photographs augmented at p = 1 by the default strengths, against the other
half, at 32 to 128 pixels. Shift and zoom by the field of view, which the crop puts at the same place in every
photograph; rotation by its radius from 64 pixels on, because the crop's corners rotate, and by the disc from 20 degrees
on. Brightness and contrast are not detected: photographs differ more among themselves than these strengths change
them.
"""

import numpy as np

from idrid_jax.data.preprocess import retina_mask

DISC, SURROUND = 1 / 10, 1 / 3  # sides, in sides of the image, of the squares whose contrast finds the optic disc
BATCH = 32  # images as floats at a time: large splits would fill the memory
MIN_DISTANCE = 0.25  # standard deviations of the photographs: smaller differences are not reported
LEVEL = 0.05  # of all p-values together, after Holm's correction
MIN_SHARE = 0.1  # of augmented photographs in the best-fitting mixture: below, the difference has another cause
PERMUTATIONS = 1000

CAPTIONS = {
    "field_row": "center of the field of view, rows",
    "field_column": "center of the field of view, columns",
    "field_radius": "radius of the field of view",
    "disc_angle": "angle of the disc",
    "brightness": "brightness",
    "contrast": "contrast",
    "saturation": "saturation",
}


def measure(
    generated: np.ndarray, real: np.ndarray, augmented: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, object]:
    """Compare the statistics of generated images with those of photographs.

    Args:
      generated, real: uint8 [N, R, R, C] and [M, R, R, C] of one size; of the same grades if the generator is
        conditional.
      augmented: real photographs as the discriminator sees them at p = 1, uint8 [K, R, R, C]. None: every difference
        counts as a leak.
      seed: of the permutations.
    Returns: for json.dumps: "statistics": {name: {"generated", "real": means; "distance": the Wasserstein-1 distance in
      standard deviations of the photographs (of the field of view: at least half a pixel); "p": of a distance as large
      between random halves of all images, after Holm; "share", with `augmented`: of these in the mixture with plain
      photographs that is nearest to the generated images}}; "leaks": names; "verdict".
    """
    generated_statistics, real_statistics = statistics(generated), statistics(real)
    augmented_statistics = None if augmented is None else statistics(augmented)
    rng = np.random.default_rng(seed)
    pixel = 1 / np.shape(real)[1]
    results = {}
    for name in CAPTIONS:
        a, b = generated_statistics[name], real_statistics[name]
        deviation = max(float(b.std()), pixel / 2 if name.startswith("field") else 1e-9)
        distance, p = permutation_test(a / deviation, b / deviation, rng)
        results[name] = {"generated": float(a.mean()), "real": float(b.mean()), "distance": distance, "p": p}
        if augmented_statistics is not None:
            results[name]["share"] = _mixture_share(a, b, augmented_statistics[name])
    _correct_by_holm(results)
    differ = [name for name, result in results.items() if result["p"] < LEVEL and result["distance"] >= MIN_DISTANCE]
    leaks = [name for name in differ if results[name].get("share", 1.0) >= MIN_SHARE]
    return {"statistics": results, "leaks": leaks, "verdict": _verdict(results, leaks, differ)}


def _correct_by_holm(results) -> None:
    """Replace each "p" by that of Holm's step-down correction."""
    highest = 0.0
    for rank, name in enumerate(sorted(results, key=lambda name: results[name]["p"])):
        highest = max(highest, min(1.0, (len(results) - rank) * results[name]["p"]))
        results[name]["p"] = highest


def _verdict(results, leaks, differ) -> str:
    no_leaks = [name for name in differ if name not in leaks]
    other = f"; not as augmentation would: {_list(results, no_leaks)}" if no_leaks else ""
    if leaks:
        return f"augmentation may have leaked: generated images differ in {_list(results, leaks)}{other}"
    return f"no sign that augmentation leaked{other}"


def _list(results, names):
    return ", ".join(f"{CAPTIONS[name]} ({results[name]['distance']:.2f} standard deviations)" for name in names)


def statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the statistics of each image, uint8 [N, R, R, C] -> {name of `CAPTIONS`: float64 [N]}.

    field_row, field_column: center of the lit pixels, in sides from the image's center, down and right. field_radius:
      of a circle of as many pixels, in sides. disc_angle: of the brightest blob about the center, -90 to 90 degrees
      above the horizontal whichever side it is on: rotation changes it, mirroring does not. brightness: mean light of
      the lit pixels, 0 to 1. contrast: standard deviation of the light over its mean. saturation: mean distance of the
      channels from their mean, over the mean light; 0 for grey images.
    """
    parts = [_statistics(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in CAPTIONS}


def _statistics(images):
    images = np.asarray(images, np.float64) / 255
    light = images.mean(-1)
    lit = retina_mask(light)
    size = light.shape[1]
    position = (np.arange(size) - (size - 1) / 2) / size
    brightness = _lit_mean(light, lit)
    floor = np.maximum(brightness, 1 / 255)
    row, column = _brightest_blob(light, lit)
    return {
        "field_row": _lit_mean(position[:, None], lit),
        "field_column": _lit_mean(position[None], lit),
        "field_radius": np.sqrt(lit.sum((1, 2)) / np.pi) / size,
        "disc_angle": np.rad2deg(np.arctan2(-position[row], np.abs(position[column]))),
        "brightness": brightness,
        "contrast": np.sqrt(_lit_mean((light - brightness[:, None, None]) ** 2, lit)) / floor,
        "saturation": _lit_mean(np.abs(images - light[..., None]).mean(-1), lit) / floor,
    }


def _lit_mean(x, lit):
    return (x * lit).sum((1, 2)) / np.maximum(lit.sum((1, 2)), 1)


def _brightest_blob(light, lit):
    """Return row and column, int [N], of the place that is brightest relative to its surroundings."""
    n, size = light.shape[:2]
    small, large = (max(3, round(share * size)) | 1 for share in (DISC, SURROUND))
    inner, outer = (_box_sum(light * lit, side) / np.maximum(_box_sum(lit, side), 1) for side in (small, large))
    excess = np.where(_box_sum(lit, small) > small**2 / 2, inner - outer, -np.inf)
    return np.unravel_index(excess.reshape(n, -1).argmax(1), (size, size))


def _box_sum(x, side):
    """Return the sums over squares of an odd side about each pixel, with 0 outside: [N, R, R] -> [N, R, R]."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (side // 2 + 1, side // 2)
        sums = np.cumsum(np.pad(x, margin), axis=axis)
        size = x.shape[axis]
        x = np.take(sums, range(side, side + size), axis) - np.take(sums, range(size), axis)
    return x


def permutation_test(a, b, rng) -> tuple[float, float]:
    """Return the Wasserstein-1 distance of two samples, and the share of permutations with one as large."""
    values = np.concatenate([a, b])
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order])
    in_a = np.zeros((PERMUTATIONS + 1, len(values)), bool)
    in_a[0] = order < len(a)
    for row in in_a[1:]:
        row[rng.permutation(len(values))[: len(a)]] = True
    cdf_a, cdf_b = np.cumsum(in_a, axis=1) / len(a), np.cumsum(~in_a, axis=1) / len(b)
    distances = np.abs(cdf_a - cdf_b)[:, :-1] @ gaps
    return float(distances[0]), float(np.mean(distances >= distances[0] * (1 - 1e-9)))


def _mixture_share(a, b, c) -> float:
    """Return s in [0, 1] for which (1 - s) F_b + s F_c is nearest to F_a, by least squares over the distribution
    functions."""
    values = np.sort(np.concatenate([a, b, c]))
    cdf_a, cdf_b, cdf_c = (np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b, c))
    difference, direction, gaps = cdf_a - cdf_b, cdf_c - cdf_b, np.diff(values)
    length = float((direction * direction)[:-1] @ gaps)
    return float(np.clip(float((difference * direction)[:-1] @ gaps) / length, 0, 1)) if length > 0 else 0.0


def table(result: dict) -> str:
    """Render what `measure` returned as text, without a newline at the end."""
    lines = [f"{'':<36}  generated     real  distance, std. devs       p  of augmented"]
    for name, found in result["statistics"].items():
        share = f"{found['share']:12.0%}" if "share" in found else f"{'-':>12}"
        lines.append(
            f"{CAPTIONS[name]:<36}  {found['generated']:9.3f}  {found['real']:7.3f}  {found['distance']:19.2f}  "
            f"{found['p']:6.3f}  {share}"
        )
    return "\n".join([*lines, f"Augmentation: {result['verdict']}."])
