"""Are generated images copies of training photographs? Each one's nearest, beside what held-out photographs have.

A copy agrees with its photograph in structure (disc, vessels, lesions), whatever its brightness and noise: images are
compared in a band of their scales, within the retina, also mirrored. What is near says little by itself; held-out
photographs, which cannot be copies, say how near a new one comes by chance. NumPy in, plain Python out; no files.

The band was chosen on IDRiD by what tells 200 planted copies (noise of 8 grey levels, 15 % brighter or darker, half of
them mirrored) from held-out photographs: nearer than any of these are all at 256 pixels, 93 % at 32, and 24 % of the
thesis's 28 x 28 whole grey frames, which hold too little.
"""

import math

import numpy as np
from scipy import ndimage

SIDE = 64  # pixels at which images are compared, at most
COARSE, FINE = 1 / 8, 1.0  # standard deviations of the blurs between which structure counts: of the side; in pixels
RIM = 1 / 16  # of the side, left out: the strongest edge of all, and the same in every photograph of one camera
RETINA = 0.2  # of an image's bright end: darker is outside
SHARE = 0.05  # of generated images nearer than any held-out one: more is copying
PAIRS = 10  # the nearest, told one by one
LEAST = 10  # generated and held-out images


def look(images: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, C] -> the structure of each, float32 [N, S, S] of mean 0 and norm 1, S some `SIDE`; 0 where there
    is none."""
    grey = np.asarray(images, np.float32).mean(-1)
    factor = max(1, grey.shape[1] // SIDE)
    side = grey.shape[1] // factor
    grey = grey[:, : side * factor, : side * factor].reshape(-1, side, factor, side, factor).mean((2, 4))
    out = np.zeros_like(grey)
    for i, one in enumerate(grey):
        inside = one > RETINA * np.percentile(one, 95)
        inside = ndimage.binary_erosion(inside, iterations=max(1, round(RIM * side)), border_value=1)
        if inside.any():
            band = _blurred(one, inside, FINE) - _blurred(one, inside, COARSE * side)
            band = np.where(inside, band - band[inside].mean(), 0)
            norm = np.linalg.norm(band)
            out[i] = band / norm if norm > 1 else 0
    return out


def _blurred(one, inside, deviation):
    """The mean of what is inside, under a Gaussian."""
    weight = inside.astype(np.float32)
    total = ndimage.gaussian_filter(weight, deviation)
    return ndimage.gaussian_filter(one * weight, deviation) / np.maximum(total, 1e-3)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations of two sets of looks [N, S, S] and [M, S, S], as they are or mirrored, whichever is more: [N, M]."""
    flat = b.reshape(len(b), -1).T
    return np.maximum(a.reshape(len(a), -1) @ flat, a[:, :, ::-1].reshape(len(a), -1) @ flat)


def authenticity(to_training: np.ndarray, among_training: np.ndarray) -> np.ndarray:
    """bool [N]: is an image farther from its nearest training photograph than that one from its own nearest neighbour?

    Alaa et al., "How Faithful is your Synthetic Data?", ICML 2022, section 4.3; its mean is AuthPct.
    to_training [N, M], among_training [M, M]: similarities.
    """
    others = among_training - 2 * np.eye(len(among_training), dtype=among_training.dtype)
    nearest = to_training.argmax(1)
    return to_training.max(1) < others.max(1)[nearest]


def data_copying(generated: np.ndarray, held_out: np.ndarray) -> float:
    """C_T of Meehan et al., "A Non-Parametric Test to Detect Data-Copying", AISTATS 2020, section 3.1, in one cell: the
    z score of the Mann-Whitney statistic of distances to the nearest training photograph. Below some -3 generated ones
    lie nearer than held-out ones, which is copying; far above 0 they lie farther off than real ones.

    generated [N], held_out [M]: similarities to the nearest.
    """
    n, m = len(generated), len(held_out)
    farther = (generated[:, None] < held_out).sum() + 0.5 * (generated[:, None] == held_out).sum()
    return float((farther - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))


def measure(generated: np.ndarray, training: np.ndarray, held_out: np.ndarray, training_ids: tuple[str, ...]) -> dict:
    """Nearest training photographs of generated images, and a verdict.

    Args:
      generated, training, held_out: uint8 [N, R, R, C].
      training_ids: names of the training photographs, for the pairs.
    Returns: for json.dumps: "generated" and "held_out": {"images", "nearest": {quantile: similarity}, "authentic"};
      "c_t"; "nearer": the share of generated images nearer to a training photograph than any held-out one, with
      "threshold"; "pairs": the nearest [{"generated" (place), "training" (id), "index", "similarity"}]; "verdict".
      Where there are fewer than `LEAST` images: {"missing": why}.
    """
    for name, images in (("generated", generated), ("training", training), ("held-out", held_out)):
        if len(images) < LEAST:
            return {"missing": f"{len(images)} {name} images; it takes at least {LEAST}"}
    looks = look(training)
    among = similarity(looks, looks)
    found, of = {}, {}
    for name, images in (("generated", generated), ("held_out", held_out)):
        to_training = similarity(look(images), looks)
        found[name] = to_training.max(1)
        of[name] = {
            "images": len(images),
            "nearest": {str(q): float(np.quantile(found[name], q)) for q in (0.5, 0.9, 0.99, 1)},
            "authentic": float(authenticity(to_training, among).mean()),
        }
        if name == "generated":
            first = np.argsort(-found[name], kind="stable")[:PAIRS]
            index = to_training.argmax(1)
            of["pairs"] = [
                {
                    "generated": int(i),
                    "training": training_ids[index[i]],
                    "index": int(index[i]),
                    "similarity": float(found[name][i]),
                }
                for i in first
            ]
    nearer = float((found["generated"] > found["held_out"].max()).mean())
    of |= {"c_t": data_copying(found["generated"], found["held_out"]), "nearer": nearer, "threshold": SHARE}
    word, bound = ("copies", "more than") if nearer > SHARE else ("no sign of copying", "at most")
    said = f"{nearer:.1%} of generated images are nearer to a training photograph than any held-out one is"
    return of | {"verdict": f"{word}: {said}, {bound} {SHARE:.0%}"}


def table(result: dict) -> str:
    """What `measure` returned, for a console, without a newline at the end."""
    if "missing" in result:
        return f"Copies of patients: not judged: {result['missing']}."
    lines = ["likeness to the nearest training photograph   median   90 %   99 %    most  authentic"]
    for name, caption in (("generated", "generated"), ("held_out", "held-out real")):
        cells = "  ".join(f"{value:5.2f}" for value in result[name]["nearest"].values())
        lines.append(f"{caption:<45} {cells}  {result[name]['authentic']:9.0%}")
    nearest = ", ".join(f"{pair['training']} {pair['similarity']:.2f}" for pair in result["pairs"][:3])
    return "\n".join(
        [
            *lines,
            f"Nearest: {nearest}. C_T {result['c_t']:+.1f} (below -3: nearer than new photographs are).",
            f"Copies of patients: {result['verdict']}.",
        ]
    )
