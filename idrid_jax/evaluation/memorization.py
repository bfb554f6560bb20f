"""Memorization: are generated images copies of training photographs?

A copy is much nearer to its photograph than to any other one; a new image is about as near to its nearest photograph as
to the next. Images are compared by their coarse structure within the retina (optic disc, vessel arcs, large lesions,
color), whatever their brightness, also mirrored and upside down. The same numbers of held-out photographs, which cannot
be copies, are the reference. NumPy in, plain Python out; no files.

The constants were chosen on IDRiD's training and test photographs:

- Copies that are found, at 32, 64 and 128 pixels / in the thesis's 28 x 28 grey frames: under noise of 8 grey levels,
  15 % brighter or darker, as they are, mirrored, upside down or both 99 % / 73 %; rotated by 3 degrees all / 87 %, by 5
  degrees 97 % / 34 %; shifted by 2 % of the side 92 % / 6 %, by 4 % 17 % / none. Shifted copies stay hidden.
- Others taken for copies: none of 503 photographs compared with the rest, of 1,000 images of a cgan32, of mean images
  or noise. With few training photographs it is less reliable: with 50 or 20 of them about 1 % at 28 pixels, with 10 up
  to 5 %; under 1 % at 32 pixels.
- The verdict, over 20 sets of 100 images with 202 training photographs: 10 % of copies are found in 20 sets at 28 and
  32 pixels, 2 % of copies in 14 and 20; sets of other photographs are called copies in none.
"""

import math

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from idrid_jax.evaluation.downsample import block_means

SIDE = 32  # pixels a side at which images are compared, about
BLUR = 2  # standard deviation in those pixels: removes noise and the effect of small rotations
RIM = 2  # width in those pixels of the excluded edge of the retina, which is the same in every photograph of a camera
RETINA = 0.2  # share of the mean training image's bright end below which a pixel is outside the retina
COPY = 0.5  # similarity from which an image is a copy: twice as near to one photograph as to any other
SAME = 0.5  # share of the median distance to the nearest other one: nearer training photographs are one photograph
SHARE = 0.01  # copy rate that is allowed beyond that of held-out photographs
NUM_PAIRS = 10  # most similar pairs that are reported
MIN_IMAGES = 10  # of each set
SOFT = 1 / 32  # standard deviation, in sides of the image, of the blur before pretrained networks see an image
C_T_LIMIT = -3  # C_T below which generated images as a whole lie nearer to the training photographs than new ones do
STRUCTURE = "coarse structure (pixels)"  # what `coarse_structure` compares, next to the names of networks
QUANTILES = (0.01, 0.1, 0.5, 0.9)  # of the distances that are reported


def measure(
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    training_ids: tuple[str, ...],
    features: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> dict:
    """Compare generated images with their nearest training photographs.

    Args:
      generated, training, held_out: uint8 [N, R, R, C].
      training_ids: names of the training photographs, for the pairs.
      features: {network: features of the `softened` images: of generated ones, float [N, D], of training ones as they
        are and mirrored, [2, M, D], and of held-out ones, [K, D]}. Not of a network that was trained on these
        photographs: held-out ones are far from them in its features, and everything else looks like a copy.
    Returns: for json.dumps:
      "generated" and "held_out": {"images", "similarity": {quantile: value}, "num_copies", "authentic": see
      `authenticity`}; "c_t": of the coarse structure; "copy_rate": the share of generated images that are copies;
      "threshold": the highest copy rate that is allowed; "pairs": the most similar [{"generated" (index), "training"
      (id), "index" (of the photograph), "similarity"}]; "distances": {`STRUCTURE` and each network: see
      `distance_summary`}; "verdict". With fewer than `MIN_IMAGES` images: {"missing": why}.
    """
    for name, images in (("generated", generated), ("training", training), ("held-out", held_out)):
        if len(images) < MIN_IMAGES:
            return {"missing": f"{len(images)} {name} images; at least {MIN_IMAGES} are needed"}
    photographs = TrainingPhotographs(training)
    to_training = {"generated": photographs.distances(generated), "held_out": photographs.distances(held_out)}
    similarities = {name: similarity(distance, photographs.among) for name, distance in to_training.items()}
    result = {
        name: {
            "images": len(similarities[name]),
            "similarity": {str(q): float(np.quantile(similarities[name], q)) for q in (0.5, 0.9, 0.99, 1)},
            "num_copies": int((similarities[name] >= COPY).sum()),
            "authentic": float(authenticity(to_training[name], photographs.among).mean()),
        }
        for name in to_training
    }
    result["distances"] = {STRUCTURE: distance_summary(to_training, photographs.among)}
    for network, (generated_features, training_sides, held_out_features) in (features or {}).items():
        nearest_side = {
            name: np.min([cdist(some, side) for side in training_sides], axis=0)
            for name, some in (("generated", generated_features), ("held_out", held_out_features))
        }
        among_training = cdist(training_sides[0], training_sides[0])
        result["distances"][network] = distance_summary(nearest_side, among_training)
    copy_rate, by_chance = (result[name]["num_copies"] / result[name]["images"] for name in ("generated", "held_out"))
    return result | {
        "c_t": result["distances"][STRUCTURE]["c_t"],
        "copy_rate": copy_rate,
        "threshold": allowed_copy_rate(len(generated), by_chance),
        "pairs": _pairs(similarities["generated"], to_training["generated"].argmin(1), training_ids),
        "verdict": _verdict(result, copy_rate, allowed_copy_rate(len(generated), by_chance)),
    }


def _pairs(similarities, nearest, training_ids) -> list[dict]:
    return [
        {
            "generated": int(i),
            "training": training_ids[nearest[i]],
            "index": int(nearest[i]),
            "similarity": float(similarities[i]),
        }
        for i in np.argsort(-similarities, kind="stable")[:NUM_PAIRS]
    ]


def _verdict(result, copy_rate, threshold) -> str:
    generated, held_out, c_t = result["generated"], result["held_out"], result["distances"][STRUCTURE]["c_t"]
    headline, bound = ("copies", "more than") if copy_rate > threshold else ("no sign of copying", "at most")
    if copy_rate <= threshold and c_t < C_T_LIMIT:
        headline = "nearer to the training photographs than new ones are"
    verdict = (
        f"{headline}: {generated['num_copies']} of {generated['images']} generated images ({copy_rate:.1%}) are at "
        f"least twice as near to one training photograph as to any other, {bound} {threshold:.1%}; of "
        f"{held_out['images']} held-out ones {held_out['num_copies']} are"
    )
    if c_t < C_T_LIMIT:
        verdict += f"; C_T {c_t:+.1f}, below {C_T_LIMIT}, as of copies or of blurred images"
    return verdict


def allowed_copy_rate(num_images: int, held_out_rate: float = 0.0) -> float:
    """Return the highest copy rate that is allowed: that of held-out photographs plus `SHARE`, and one image in any
    case, which may be chance."""
    return max(held_out_rate + SHARE, 1 / num_images)


class TrainingPhotographs:
    """Training photographs, uint8 [M, R, R, C], prepared for any number of comparisons."""

    def __init__(self, images: np.ndarray):
        self.inside = retina_mask(images)
        self.structure = coarse_structure(images, self.inside)
        self.among = structure_distances(self.structure, self.structure)

    def distances(self, images: np.ndarray) -> np.ndarray:
        """Return the distances of uint8 [N, R, R, C] to each photograph, float32 [N, M]."""
        return structure_distances(coarse_structure(images, self.inside), self.structure)

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """Return the similarity of each image to its nearest photograph, [N]; that of a copy is at least `COPY`."""
        return similarity(self.distances(images), self.among)


# --- similarity by coarse structure


def retina_mask(training: np.ndarray) -> np.ndarray:
    """Return where photographs are compared: bool [S, S] of uint8 [N, R, R, C], symmetric under mirroring and turning
    upside down; everywhere if nothing else would remain."""
    mean = _small(training).mean((0, 3))
    inside = mean > RETINA * np.percentile(mean, 95)
    inside &= inside[:, ::-1] & inside[::-1] & inside[::-1, ::-1]
    inside = ndimage.binary_erosion(inside, iterations=RIM, border_value=1)
    return inside if inside.any() else np.ones_like(inside)


def coarse_structure(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return a vector of the blurred pixels inside the retina of each image, as it is, mirrored, upside down and both.

    images: uint8 [N, R, R, C]. inside: bool [S, S], of `retina_mask`.
    Returns: float32 [4, N, D] of mean 0 and norm 1; 0 for an image without structure.
    """
    small = ndimage.gaussian_filter(_small(images), (0, BLUR, BLUR, 0), mode="nearest")
    sides = small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]
    out = np.stack([x[:, inside].reshape(len(x), -1) for x in sides])
    out -= out.mean(-1, keepdims=True)
    norm = np.linalg.norm(out, axis=-1, keepdims=True)
    return np.where(norm > 1, out / np.maximum(norm, 1), 0)


def _small(images):
    images = np.asarray(images)
    return block_means(images, max(1, round(images.shape[1] / SIDE)))


def structure_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of [4, N, D] and [4, M, D] of `coarse_structure`, the least over the four sides:
    float32 [N, M] in 0..2."""
    inner = np.max([side @ b[0].T for side in a], axis=0)
    norms = [np.square(x[0]).sum(-1) for x in (a, b)]
    return np.sqrt(np.maximum(norms[0][:, None] + norms[1] - 2 * inner, 0))


def similarity(to_training: np.ndarray, among_training: np.ndarray) -> np.ndarray:
    """Return 1 - d1 / d2 of each image, [N]: d1 is the distance to the nearest training photograph, d2 that to the
    nearest other one. 1 is the same picture, 0 is no nearer to one photograph than to another.

    Photographs that are the same (`SAME`) do not count as others, or a duplicated photograph would hide its copies.
    to_training [N, M], among_training [M, M]: distances.
    """
    to_others = _without_self(among_training)
    same = among_training <= SAME * np.median(to_others.min(1))
    np.fill_diagonal(same, True)
    nearest_other = np.where(same[to_training.argmin(1)], np.inf, to_training).min(1)
    defined = np.isfinite(nearest_other) & (nearest_other > 0)
    return np.where(defined, 1 - to_training.min(1) / np.where(defined, nearest_other, 1), 0.0)


# --- distances to the nearest photograph


def distance_summary(to_training: dict[str, np.ndarray], among_training: np.ndarray) -> dict:
    """Summarize how far images lie from their nearest training photograph.

    to_training: {"generated", "held_out"}: distances [N or K, M]. among_training: distances [M, M].
    Returns: the same keys with {"nearest": {quantile: distance}, in units of the median distance of a training
      photograph to its own nearest, "authentic": AuthPct as a share}, and "c_t".
    """
    unit = float(np.median(_without_self(among_training).min(1))) or 1.0
    summary = {
        name: {
            "nearest": {str(q): float(np.quantile(distance.min(1), q)) / unit for q in QUANTILES},
            "authentic": float(authenticity(distance, among_training).mean()),
        }
        for name, distance in to_training.items()
    }
    return summary | {"c_t": data_copying(*(to_training[name].min(1) for name in ("generated", "held_out")))}


def authenticity(to_training: np.ndarray, among_training: np.ndarray) -> np.ndarray:
    """Return whether each image is farther from its nearest training photograph than that photograph is from its own
    nearest neighbor, bool [N]; the mean is AuthPct.

    to_training [N, M], among_training [M, M]: distances.
    Source: Alaa et al., "How Faithful is your Synthetic Data?", ICML 2022, section 4.3.
    """
    return to_training.min(1) > _without_self(among_training).min(1)[to_training.argmin(1)]


def data_copying(generated: np.ndarray, held_out: np.ndarray) -> float:
    """Return C_T, the z score of the Mann-Whitney statistic of the distances to the nearest training photograph.

    Below about -3 generated images lie nearer than held-out ones, which is copying (or blur); far above 0 they lie
    farther away than photographs.
    generated [N], held_out [M]: distances to the nearest.
    Source: Meehan et al., "A Non-Parametric Test to Detect Data-Copying", AISTATS 2020, section 3.1, with one cell.
    """
    n, m = len(generated), len(held_out)
    farther = (generated[:, None] > held_out).sum() + 0.5 * (generated[:, None] == held_out).sum()
    return float((farther - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))


def softened(images: np.ndarray) -> np.ndarray:
    """Return uint8 [N, R, R, C] blurred, for the networks whose features measure the distances.

    Networks detect a generator's own pixel texture, which keeps every image, copies too, away from every photograph:
    for EfficientNet-Lite0 at 64 pixels, C_T of copies under noise of 8 grey levels is +12, and -11 if all images are
    softened.
    """
    out = np.empty_like(images)
    deviation = SOFT * images.shape[1]
    for i, image in enumerate(images):  # one at a time: large splits as floats would fill the memory
        soft = ndimage.gaussian_filter(image.astype(np.float32), (deviation, deviation, 0), mode="nearest")
        out[i] = np.rint(soft)
    return out


def _without_self(among):
    """Return distances [M, M] with infinity on the diagonal."""
    return among + np.diag(np.full(len(among), np.inf))


# --- text


def table(result: dict) -> str:
    """Render what `measure` returned as text, without a newline at the end."""
    if "missing" in result:
        return f"Memorization: not judged: {result['missing']}."
    lines = ["similarity to the nearest training photograph        median   90 %   99 %     max  authentic"]
    for name, caption in (("generated", "generated"), ("held_out", "held-out real")):
        cells = "  ".join(f"{value:5.2f}" for value in result[name]["similarity"].values())
        lines.append(f"{caption:<52} {cells}  {result[name]['authentic']:9.0%}")
    nearest = ", ".join(f"{pair['training']} {pair['similarity']:.2f}" for pair in result["pairs"][:3])
    return "\n".join(
        [
            *lines,
            f"1 is the same picture, a copy has at least {COPY}. Most similar: {nearest}.",
            *_distance_lines(result["distances"]),
            f"Memorization: {result['verdict']}.",
        ]
    )


def _distance_lines(distances):
    quantiles = "  ".join(f"{q:4.0%}" for q in QUANTILES)
    head = "distance to the nearest; 1: as among training"
    width = max(len(head), *map(len, distances))
    lines = [f"{head:<{width}}  {quantiles}  authentic     C_T"]
    for name, summary in distances.items():
        for key, caption, c_t in (("generated", name, f"{summary['c_t']:+8.1f}"), ("held_out", "  held-out real", "")):
            cells = "  ".join(f"{value:4.2f}" for value in summary[key]["nearest"].values())
            lines.append(f"{caption:<{width}}  {cells}  {summary[key]['authentic']:9.0%}{c_t}")
    return [*lines, f"Networks see blurred images. C_T below {C_T_LIMIT}: nearer than new photographs are."]
