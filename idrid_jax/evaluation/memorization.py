"""Are generated images copies of training photographs? Each one's nearest, beside what held-out photographs have.

A copy is much nearer to its photograph than to any other one; a new image is about as near to its nearest as to the
next. Images are compared by their coarse structure within the retina (disc, vessels' arcs, large lesions, colour),
whatever their brightness, also mirrored and upside down. NumPy in, plain Python out; no files.

`COPY` and the blur were chosen on IDRiD's training and test photographs. Told one by one: under noise of 8 grey levels,
15 % brighter or darker, as they are, mirrored, upside down or both, 99 % of copies at 32, 64 and 128 pixels and 73 % of
the thesis's 28 x 28 whole grey frames; turned by 3 degrees all and 87 %, by 5 degrees 97 % and 34 %; moved by 2 % of
the side 92 % and 6 %, by 4 % 17 % and none: copies that are moved stay hidden. Taken for copies: none of 503
photographs beside the others, of 1,000 images of a cgan32, of mean images or noise. Few photographs to train on are a
poor yardstick: beside 50 or 20 of them about 1 % of others are taken for copies at 28 pixels, beside 10 up to 5 %; at
32 pixels under 1 %.

The verdict, over 20 sets of 100 images beside 202 photographs: a tenth of copies is found in 20 at 28 and 32 pixels,
2 % of copies in 14 and 20; sets of other photographs are called copies in none.
"""

import math

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

SIDE = 32  # pixels at which images are compared, about
BLUR = 2  # pixels of those, standard deviation: noise goes, and so does a small turn
RIM = 2  # pixels of those, left out: the strongest edge of all, and the same in every photograph of one camera
RETINA = 0.2  # of the mean training image's bright end: darker is outside
COPY = 0.5  # likeness from which an image is a copy: twice as near to one photograph as to any other
SAME = 0.5  # of the median distance to the nearest other: training photographs nearer than that are one, not two
SHARE = 0.01  # of generated images may be copies beyond the share of held-out ones, and one in any case
PAIRS = 10  # the nearest, told one by one
LEAST = 10  # generated and held-out images
SOFT = 1 / 32  # of the side, standard deviation of the blur under which networks look for copies
NEARER = -3  # C_T below which generated images as a whole lie nearer to the training photographs than new ones do
STRUCTURE = "coarse structure (pixels)"  # what `look` sees, beside the names of networks
QUANTILES = (0.01, 0.1, 0.5, 0.9)  # of distances, told beside those of held-out photographs


def retina(training: np.ndarray) -> np.ndarray:
    """Where photographs are compared: bool [S, S] of uint8 [N, R, R, C], the same when mirrored or upside down; all of
    it where nothing else is left."""
    mean = _small(training).mean((0, 3))
    inside = mean > RETINA * np.percentile(mean, 95)
    inside &= inside[:, ::-1] & inside[::-1] & inside[::-1, ::-1]
    inside = ndimage.binary_erosion(inside, iterations=RIM, border_value=1)
    return inside if inside.any() else np.ones_like(inside)


def look(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, C] -> the coarse structure of each as it is, mirrored, upside down and both: float32 [4, N, D] of
    mean 0 and norm 1, or 0 where there is none. `inside` bool [S, S] is of `retina`."""
    small = _small(images)
    small = ndimage.gaussian_filter(small, (0, BLUR, BLUR, 0), mode="nearest")
    sides = small, small[:, :, ::-1], small[:, ::-1], small[:, ::-1, ::-1]
    out = np.stack([x[:, inside].reshape(len(x), -1) for x in sides])
    out -= out.mean(-1, keepdims=True)
    norm = np.linalg.norm(out, axis=-1, keepdims=True)
    return np.where(norm > 1, out / np.maximum(norm, 1), 0)


def _small(images):
    x = np.asarray(images)
    factor = max(1, round(x.shape[1] / SIDE))
    side = x.shape[1] // factor
    x = x[:, : side * factor, : side * factor].reshape(len(x), side, factor, side, factor, -1)
    return x.mean((2, 4), dtype=np.float32)


def softened(images: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, C] -> the same, blurred: what networks are shown that tell how near images lie.

    Networks hear a generator's own pixel texture, which holds every image off every photograph, copies too: by
    EfficientNet-Lite0 at 64 pixels C_T of copies under noise of 8 grey levels is +12, and -11 when all is softened.
    """
    out = np.empty_like(images)
    for i, image in enumerate(images):  # one by one: as floats a split of large photographs fills a memory
        deviation = SOFT * images.shape[1]
        soft = ndimage.gaussian_filter(image.astype(np.float32), (deviation, deviation, 0), mode="nearest")
        out[i] = np.rint(soft)
    return out


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of two sets of looks [4, N, D] and [4, M, D], the least of an image's four: float32 [N, M],
    0 to 2."""
    inner = np.max([side @ b[0].T for side in a], axis=0)
    norms = [np.square(x[0]).sum(-1) for x in (a, b)]
    return np.sqrt(np.maximum(norms[0][:, None] + norms[1] - 2 * inner, 0))


def _others(among):
    """Distances [M, M] with none of a photograph to itself."""
    return among + np.diag(np.full(len(among), np.inf))


def likeness(to_training: np.ndarray, among_training: np.ndarray) -> np.ndarray:
    """1 less the distance to the nearest training photograph over that to the nearest other one: [N], 1 is the same
    picture, 0 no nearer to one than to another.

    Photographs that are the same (`SAME`) do not count as others, or a photograph that is there twice would hide its
    copies. to_training [N, M], among_training [M, M]: distances.
    """
    others = _others(among_training)
    same = among_training <= SAME * np.median(others.min(1))
    np.fill_diagonal(same, True)
    other = np.where(same[to_training.argmin(1)], np.inf, to_training).min(1)
    told = np.isfinite(other) & (other > 0)
    return np.where(told, 1 - to_training.min(1) / np.where(told, other, 1), 0.0)


def authenticity(to_training: np.ndarray, among_training: np.ndarray) -> np.ndarray:
    """bool [N]: is an image farther from its nearest training photograph than that one from its own nearest neighbour?

    Alaa et al., "How Faithful is your Synthetic Data?", ICML 2022, section 4.3; its mean is AuthPct.
    to_training [N, M], among_training [M, M]: distances.
    """
    others = _others(among_training)
    return to_training.min(1) > others.min(1)[to_training.argmin(1)]


class Training:
    """Training photographs, uint8 [M, R, R, C], made ready for any number of comparisons."""

    def __init__(self, images: np.ndarray):
        self.inside = retina(images)
        self.looks = look(images, self.inside)
        self.among = distances(self.looks, self.looks)

    def distances(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, R, R, C] -> float32 [N, M]."""
        return distances(look(images, self.inside), self.looks)

    def likeness(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, R, R, C] -> [N]; a copy has at least `COPY`."""
        return likeness(self.distances(images), self.among)


def allowed(images: int, held_out_share: float = 0.0) -> float:
    """The share of so many generated images that may be copies by `COPY`: `SHARE` beyond that of held-out ones, and one
    image in any case, which may be chance."""
    return max(held_out_share + SHARE, 1 / images)


def data_copying(generated: np.ndarray, held_out: np.ndarray) -> float:
    """C_T of Meehan et al., "A Non-Parametric Test to Detect Data-Copying", AISTATS 2020, section 3.1, in one cell: the
    z score of the Mann-Whitney statistic of distances to the nearest training photograph. Below some -3 generated ones
    lie nearer than held-out ones, which is copying; far above 0 they lie farther off than real ones.

    generated [N], held_out [M]: distances to the nearest.
    """
    n, m = len(generated), len(held_out)
    farther = (generated[:, None] > held_out).sum() + 0.5 * (generated[:, None] == held_out).sum()
    return float((farther - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12))


def spread(to_training: dict[str, np.ndarray], among_training: np.ndarray) -> dict:
    """How far images lie from the nearest training photograph: {"generated", "held_out"} [N or K, M] and [M, M] ->
    the same keys with {"nearest" {quantile: distance, 1 is a training photograph's median to its own nearest},
    "authentic" (AuthPct as a share)}, and "c_t"."""
    others = _others(among_training)
    unit = float(np.median(others.min(1))) or 1.0
    out = {
        name: {
            "nearest": {str(q): float(np.quantile(distance.min(1), q)) / unit for q in QUANTILES},
            "authentic": float(authenticity(distance, among_training).mean()),
        }
        for name, distance in to_training.items()
    }
    return out | {"c_t": data_copying(*(to_training[name].min(1) for name in ("generated", "held_out")))}


def measure(
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    training_ids: tuple[str, ...],
    features: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> dict:
    """Nearest training photographs of generated images, and a verdict.

    Args:
      generated, training, held_out: uint8 [N, R, R, C].
      training_ids: names of the training photographs, for the pairs.
      features: {network: float of the `softened` images: of generated and of held-out ones [sides, N, D], as they are
        and mirrored, of training ones [M, D]}. Not of a network that learned these training photographs: held-out ones
        are far from them by its features, and everything else looks like a copy.
    Returns: for json.dumps: "generated" and "held_out": {"images", "similarity": {quantile: likeness}, "num_copies" (how many
      have a likeness of at least `COPY`), "authentic"}; "c_t"; "copy_rate": the share of generated images that are copies,
      "threshold" of it, of `allowed`; "pairs": the likest [{"generated" (place), "training" (id), "index",
      "similarity" (its likeness)}]; "distances": {`STRUCTURE` and each network: what `spread` returns}; "verdict".
      Where there are fewer than `LEAST` images: {"missing": why}.
    """
    for name, images in (("generated", generated), ("training", training), ("held-out", held_out)):
        if len(images) < LEAST:
            return {"missing": f"{len(images)} {name} images; it takes at least {LEAST}"}
    photographs = Training(training)
    to, of = {}, {}
    for name, images in (("generated", generated), ("held_out", held_out)):
        to[name] = to_training = photographs.distances(images)
        found = likeness(to_training, photographs.among)
        of[name] = {
            "images": len(images),
            "similarity": {str(q): float(np.quantile(found, q)) for q in (0.5, 0.9, 0.99, 1)},
            "num_copies": int((found >= COPY).sum()),
            "authentic": float(authenticity(to_training, photographs.among).mean()),
        }
        if name == "generated":
            index = to_training.argmin(1)
            of["pairs"] = [
                {
                    "generated": int(i),
                    "training": training_ids[index[i]],
                    "index": int(index[i]),
                    "similarity": float(found[i]),
                }
                for i in np.argsort(-found, kind="stable")[:PAIRS]
            ]
    share, by_chance = (of[name]["num_copies"] / of[name]["images"] for name in ("generated", "held_out"))
    threshold = allowed(len(generated), by_chance)
    of["distances"] = {STRUCTURE: spread(to, photographs.among)}
    for network, (ours, theirs, others) in (features or {}).items():
        least = lambda sides: np.min([cdist(side, theirs) for side in sides], axis=0)
        apart = {"generated": least(ours), "held_out": least(others)}
        of["distances"][network] = spread(apart, cdist(theirs, theirs))
    c_t = of["distances"][STRUCTURE]["c_t"]
    of |= {"c_t": c_t, "copy_rate": share, "threshold": threshold}
    word, bound = ("copies", "more than") if share > threshold else ("no sign of copying", "at most")
    if share <= threshold and c_t < NEARER:
        word = "nearer to the training photographs than new ones are"
    said = (
        f"{of['generated']['num_copies']} of {len(generated)} generated images ({share:.1%}) are at least twice as near to "
        "one training photograph as to any other"
    )
    beside = f"; of {len(held_out)} held-out ones {of['held_out']['num_copies']} are"
    beside += f"; C_T {c_t:+.1f}, below {NEARER}, as of copies or of blurred images" if c_t < NEARER else ""
    return of | {"verdict": f"{word}: {said}, {bound} {threshold:.1%}{beside}"}


def table(result: dict) -> str:
    """What `measure` returned, for a console, without a newline at the end."""
    if "missing" in result:
        return f"Copies of patients: not judged: {result['missing']}."
    lines = ["likeness to one training photograph beyond others   median   90 %   99 %    most  authentic"]
    for name, caption in (("generated", "generated"), ("held_out", "held-out real")):
        cells = "  ".join(f"{value:5.2f}" for value in result[name]["similarity"].values())
        lines.append(f"{caption:<51} {cells}  {result[name]['authentic']:9.0%}")
    nearest = ", ".join(f"{pair['training']} {pair['similarity']:.2f}" for pair in result["pairs"][:3])
    return "\n".join(
        [
            *lines,
            f"1 is the same picture, from {COPY} on a copy. Likest: {nearest}.",
            *_distances(result["distances"]),
            f"Copies of patients: {result['verdict']}.",
        ]
    )


def _distances(distances):
    """Lines of "distances"."""
    quantiles = "  ".join(f"{q:4.0%}" for q in QUANTILES)
    head = "distance to the nearest; 1: as among training"
    width = max(len(head), *map(len, distances))
    lines = [f"{head:<{width}}  {quantiles}  authentic     C_T"]
    for name, found in distances.items():
        for key, caption, c_t in (("generated", name, f"{found['c_t']:+8.1f}"), ("held_out", "  held-out real", "")):
            cells = "  ".join(f"{value:4.2f}" for value in found[key]["nearest"].values())
            lines.append(f"{caption:<{width}}  {cells}  {found[key]['authentic']:9.0%}{c_t}")
    return [*lines, f"Networks see the images blurred. C_T below {NEARER}: nearer than new photographs are."]
