"""Whether augmentation leaked into generated photographs: a few plain statistics that it changes, beside real ones.

`training.augment` turns, moves and lights anew what the discriminator sees; at a high p the generator may come to draw
such photographs itself (Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 2.2).
Features of networks hardly notice a turn of ten degrees: these do. Each is one number an image, so that a distance of
two sets needs no model, and its p-value is that of relabelling the images.

A generator may differ from photographs in all of them for other reasons, too (a blurred one has little contrast). With
real photographs as they were augmented beside, `compare` tells the two apart: a leak moves a statistic as these do.

What it can see: half of IDRiD's training photographs augmented at p = 1 by the default strengths, beside the other
half, at 32 to 128 pixels. Shift and zoom, by the field of view, which the crop puts at the same place in every
photograph; turning, by its radius from 64 pixels on, as the crop's corners turn, too, and by the disc from 20 degrees
on. Light does not show: photographs differ more among themselves than these strengths change them.
"""

import numpy as np

LIT = 0.15  # of an image's 95th percentile of light: the retina begins, as `preprocess` looks for it
DISC, AROUND = 1 / 10, 1 / 3  # sides of what is compared to find the disc, in sides of the image
AT_ONCE = 32  # images as floats: a split of large photographs fills a memory
LEAST = 0.25  # spreads of the photographs: a smaller distance is told to nobody
LEVEL = 0.05  # of all p-values together, after Holm
SHARE = 0.1  # of augmented photographs among plain ones, that would come nearest: less is another difference
PERMUTATIONS = 1000

CAPTIONS = {
    "field_row": "centre of the field of view, rows",
    "field_column": "centre of the field of view, columns",
    "field_radius": "radius of the field of view",
    "disc_angle": "angle of the disc",
    "brightness": "brightness",
    "contrast": "contrast",
    "saturation": "saturation",
}


def statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Of each image, uint8 [N, R, R, C] -> {name of `CAPTIONS`: float64 [N]}.

    field_row, field_column: centre of what is lit, in sides from the image's middle, down and right. field_radius: of
      a circle of as many pixels, in sides. disc_angle: of the brightest blob about the middle, degrees above the
      horizontal on whichever side it is, -90 to 90: turning moves it, mirroring does not. brightness: mean light of
      what is lit, 0 to 1. contrast: the light's standard deviation over its mean. saturation: mean distance of the
      channels from theirs, over the mean light; 0 of grey images.
    """
    parts = [_statistics(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in CAPTIONS}


def _statistics(images):
    images = np.asarray(images, np.float64) / 255
    light = images.mean(-1)
    lit = light > LIT * np.quantile(light, 0.95, axis=(1, 2), keepdims=True)
    size = light.shape[1]
    at = (np.arange(size) - (size - 1) / 2) / size
    count = np.maximum(lit.sum((1, 2)), 1)
    mean = lambda x: (x * lit).sum((1, 2)) / count
    brightness = mean(light)
    floor = np.maximum(brightness, 1 / 255)
    row, column = _blob(light, lit)
    return {
        "field_row": mean(at[:, None]),
        "field_column": mean(at[None]),
        "field_radius": np.sqrt(lit.sum((1, 2)) / np.pi) / size,
        "disc_angle": np.rad2deg(np.arctan2(-at[row], np.abs(at[column]))),
        "brightness": brightness,
        "contrast": np.sqrt(mean((light - brightness[:, None, None]) ** 2)) / floor,
        "saturation": mean(np.abs(images - light[..., None]).mean(-1)) / floor,
    }


def _blob(light, lit):
    """Row and column of the place, int [N], that is brightest beside what is around it."""
    n, size = light.shape[:2]
    small, large = (max(3, round(share * size)) | 1 for share in (DISC, AROUND))
    mean = lambda side: _box(light * lit, side) / np.maximum(_box(lit, side), 1)
    beyond = np.where(_box(lit, small) > small**2 / 2, mean(small) - mean(large), -np.inf)
    return np.unravel_index(beyond.reshape(n, -1).argmax(1), (size, size))


def _box(x, side):
    """Sums over squares of an odd side about each pixel, 0 outside: [N, R, R] -> [N, R, R]."""
    for axis in (1, 2):
        margin = [(0, 0)] * 3
        margin[axis] = (side // 2 + 1, side // 2)
        sums = np.cumsum(np.pad(x, margin), axis=axis)
        size = x.shape[axis]
        x = np.take(sums, range(side, side + size), axis) - np.take(sums, range(size), axis)
    return x


def compare(
    generated: np.ndarray, real: np.ndarray, augmented: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, object]:
    """Generated images beside photographs; a function of the images and the seed, for json.dumps.

    Args:
      generated, real: uint8 [N, R, R, C] and [M, R, R, C], of one size. Of a conditional generator, of the same grades.
      augmented: real photographs as the discriminator was shown them at p = 1, uint8 [K, R, R, C]; None: every
        difference counts as a leak.
    Returns: "statistics": {name: {"generated", "real": means; "distance": the Wasserstein-1 distance of both sets in
      standard deviations of the real one (of the field of view, in half pixels at least); "p": of one as large among
      random parts of all the images, after Holm; "share", with `augmented`: of these among plain photographs that comes
      nearest to the generated}}; "leaks": names; "verdict": in words.
    """
    of_generated, of_real = statistics(generated), statistics(real)
    of_augmented = None if augmented is None else statistics(augmented)
    rng = np.random.default_rng(seed)
    pixel = 1 / np.shape(real)[1]
    of = {}
    for name in CAPTIONS:
        a, b = of_generated[name], of_real[name]
        spread = max(float(b.std()), pixel / 2 if name.startswith("field") else 1e-9)
        distance, p = _permuted(a / spread, b / spread, rng)
        of[name] = {"generated": float(a.mean()), "real": float(b.mean()), "distance": distance, "p": p}
        if of_augmented is not None:
            of[name]["share"] = _share(a, b, of_augmented[name])
    corrected, worst = {}, 0.0
    for rank, name in enumerate(sorted(of, key=lambda name: of[name]["p"])):
        worst = max(worst, min(1.0, (len(of) - rank) * of[name]["p"]))
        corrected[name] = worst
    for name, p in corrected.items():
        of[name]["p"] = p
    differ = [name for name, found in of.items() if found["p"] < LEVEL and found["distance"] >= LEAST]
    leaks = [name for name in differ if of[name].get("share", 1.0) >= SHARE]
    return {"statistics": of, "leaks": leaks, "verdict": _verdict(of, leaks, differ)}


def _permuted(a, b, rng) -> tuple[float, float]:
    """The distance of two samples, and the share of relabellings of both with one as large."""
    values = np.concatenate([a, b])
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order])
    first = np.zeros((PERMUTATIONS + 1, len(values)), bool)
    first[0] = order < len(a)
    for row in first[1:]:
        row[rng.permutation(len(values))[: len(a)]] = True
    ours, theirs = np.cumsum(first, axis=1) / len(a), np.cumsum(~first, axis=1) / len(b)
    distances = np.abs(ours - theirs)[:, :-1] @ gaps
    return float(distances[0]), float(np.mean(distances >= distances[0] * (1 - 1e-9)))


def _share(a, b, c) -> float:
    """s in [0, 1] for which (1 - s) F_b + s F_c is nearest to F_a, by least squares over the distribution functions."""
    values = np.sort(np.concatenate([a, b, c]))
    below = lambda x: np.searchsorted(np.sort(x), values, side="right") / len(x)
    ours, towards = (below(x) - below(b) for x in (a, c))
    gaps = np.diff(values)
    inner = lambda x, y: float((x * y)[:-1] @ gaps)
    length = inner(towards, towards)
    return float(np.clip(inner(ours, towards) / length, 0, 1)) if length > 0 else 0.0


def _verdict(of, leaks, differ) -> str:
    told = lambda names: ", ".join(f"{CAPTIONS[name]} ({of[name]['distance']:.2f} spreads)" for name in names)
    others = [name for name in differ if name not in leaks]
    besides = f"; not as augmentation would: {told(others)}" if others else ""
    if leaks:
        return f"augmentation may have leaked: generated photographs differ in {told(leaks)}{besides}"
    return f"no sign that augmentation leaked{besides}"


def table(result: dict) -> str:
    """What `compare` returned, for a console, without a newline at the end."""
    lines = [f"{'':<36}  generated     real  distance, spreads       p  of augmented"]
    for name, found in result["statistics"].items():
        share = f"{found['share']:12.0%}" if "share" in found else f"{'-':>12}"
        lines.append(
            f"{CAPTIONS[name]:<36}  {found['generated']:9.3f}  {found['real']:7.3f}  {found['distance']:17.2f}  "
            f"{found['p']:6.3f}  {share}"
        )
    return "\n".join([*lines, f"Augmentation: {result['verdict']}."])
