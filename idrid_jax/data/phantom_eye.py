"""The geometry of a synthetic eye with its lesions, independent of pixels; `phantom` renders it.

Lengths are in diameters of the field of view; the origin is its center, x to the right, y down.
"""

from dataclasses import dataclass, field

import numpy as np

DISC_RADIUS = 0.0765  # IDRiD's median disc covers 1.8 % of the frame
DISC_DIAMETER = 2 * DISC_RADIUS

# Numbers of lesions by grade, (lowest, highest). Grade 4 also has new vessels. Microaneurysms and dot hemorrhages are
# as large as IDRiD's largest ones, so that the grade is still visible at 64 pixels.
MICROANEURYSMS = ((0, 0), (10, 20), (12, 26), (20, 44), (20, 44))
HEMORRHAGES = ((0, 0), (0, 0), (4, 12), (26, 48), (18, 44))
SOFT_EXUDATES = ((0, 0), (0, 0), (0, 1), (2, 7), (0, 4))
# Probabilities of macular edema risk 0, 1, 2 by grade; where there are exudates, IDRiD's shares.
EDEMA = ((1, 0, 0), (1, 0, 0), (0.12, 0.24, 0.64), (0.04, 0.06, 0.90), (0.08, 0.08, 0.84))


@dataclass
class Eye:
    """A synthetic eye: its shapes, the color of its retina, and the light and camera of its photograph.

    `layers` maps names to polygons, each (points [P, 2], strength 1 to 255); lesions have IDRiD's abbreviations.
    """

    disc: np.ndarray  # [2], center
    fovea: np.ndarray  # [2]
    arcades: np.ndarray  # [M, 2], points on the temporal arcades
    color: np.ndarray  # [3], RGB of the retina, 0-255
    light: dict[str, float]
    layers: dict[str, list[tuple[np.ndarray, int]]] = field(default_factory=dict)

    def add(self, layer: str, polygons, strength=255) -> None:
        strengths = np.broadcast_to(strength, len(polygons))
        self.layers.setdefault(layer, []).extend(zip(polygons, map(int, strengths), strict=True))


def _grow(rng, start, first, last, bend, length, width, wiggle, taper=0.3, points=32):
    """Return curves from `start` [N, 2] that bend from direction `first` to `last` (radians) within the length `bend`.

    They are (points [N, P, 2], direction [N, P], width [N, P]); the width decreases to `taper` of itself at the end.
    """
    first, last, bend, length, width, wiggle = (
        np.broadcast_to(v, len(start))[:, None] for v in (first, last, bend, length, width, wiggle)
    )
    along = np.linspace(0, 1, points) * length
    direction = last + (first - last) * np.exp(-((along / bend) ** 1.5))
    for period, share in ((rng.uniform(0.12, 0.25, first.shape), 1.0), (rng.uniform(0.04, 0.08, first.shape), 0.5)):
        direction = direction + share * wiggle * np.sin(2 * np.pi * (along / period + rng.random(first.shape)))
    step = length[..., None] / (points - 1) * np.stack([np.cos(direction), np.sin(direction)], -1)
    path = start[:, None] + np.cumsum(step, 1) - step
    return path, direction, width * (1 - (1 - taper) * along / length)


def _ribbons(path, direction, width):
    """Convert curves with a width to polygons [N, 2P, 2]."""
    side = np.stack([-np.sin(direction), np.cos(direction)], -1) * width[..., None] / 2
    return np.concatenate([path + side, (path - side)[:, ::-1]], 1)


def _branch(rng, parents, per_parent, length, thinner):
    """Return branches of vessels, as `_grow` does: thinner, at 25 to 60 degrees, on alternating sides."""
    path, direction, width = parents
    n = len(path)
    at = (rng.uniform(0.12, 0.92, (n, per_parent)) * (path.shape[1] - 1)).astype(int)
    side = np.where((np.arange(per_parent) + rng.integers(2, size=(n, 1))) % 2, 1, -1)
    row = np.arange(n)[:, None]
    angle = direction[row, at] + side * np.radians(rng.uniform(25, 60, at.shape))
    final = direction[row, at] + side * np.radians(rng.uniform(-25, 75, at.shape))
    thin = width[row, at] * rng.uniform(*thinner, at.shape)
    start, angle, final, thin = path[row, at].reshape(-1, 2), angle.ravel(), final.ravel(), thin.ravel()
    return _grow(rng, start, angle, final, 0.1, rng.uniform(*length, at.size), thin, rng.uniform(0.15, 0.5, at.size))


def _vessel_tree(rng):
    """Return the vessels of an eye as a list of (path, direction, width, is_vein), thinnest first, trunks last.

    The disc is at the origin, the fovea on the positive x axis. Four pairs of artery and vein leave the disc; the
    temporal pairs (x > 0) become the arcades that curve around the macula.
    """
    half = np.array([1, 1, -1, -1, 1, 1, -1, -1])  # below and above, artery and vein, temporal then nasal
    temporal = np.arange(8) < 4
    vein = np.arange(8) % 2
    first = np.where(temporal, rng.uniform(72, 108, 8), rng.uniform(115, 150, 8))
    last = np.where(temporal, rng.uniform(-14, 10, 8), rng.uniform(120, 175, 8))
    bend = np.where(temporal, rng.uniform(0.27, 0.36, 8), 0.2)
    length = np.where(temporal, rng.uniform(0.85, 1.0, 8), rng.uniform(0.35, 0.6, 8))
    width = np.where(vein, 0.0140, 0.0098) * np.where(temporal, 1, 0.62) * rng.uniform(0.85, 1.15, 8)
    start = rng.normal(0, 0.007, (8, 2)) + [-0.012, 0] + np.stack([0 * vein, half * 0.006], 1)
    first, last = half * np.radians(first), half * np.radians(last)
    trunks = _grow(rng, start, first, last, bend, length, width, rng.uniform(0.06, 0.17, 8))
    # Thin vessels that run from the disc towards the macula.
    n = 4
    angle = np.radians(rng.permutation(np.linspace(-70, 70, 9))[:n] + rng.uniform(-8, 8, n))
    start = np.stack([np.full(n, 0.005), 0.03 * np.sin(angle)], 1)
    length, width, wiggle = rng.uniform(0.15, 0.36, n), rng.uniform(0.0028, 0.0045, n), rng.uniform(0.2, 0.45, n)
    macular = _grow(rng, start, angle, angle * rng.uniform(-0.8, 0.4, n), 0.12, length, width, wiggle)
    daughters = _branch(rng, trunks, 6, (0.14, 0.42), (0.32, 0.66))
    kind = np.repeat(vein, 6)
    twigs = _branch(rng, daughters, 3, (0.06, 0.2), (0.45, 0.75))
    return [
        (*macular, np.arange(n) % 2), (*twigs, np.repeat(kind, 3)), (*daughters, kind), (*trunks, vein),
    ]  # fmt: skip


def _healthy_eye(rng) -> Eye:
    side = rng.choice([-1, 1])  # 1: the fovea lies right of the disc (a left eye)
    disc = np.array([-side * rng.uniform(0.21, 0.385), np.clip(rng.normal(-0.03, 0.04), -0.12, 0.08)])
    turn = np.radians(np.clip(rng.normal(6, 4), -4, 15))  # the fovea lies a little below the disc
    distance = rng.uniform(0.365, 0.41)

    def place(points):
        x, y = points[..., 0], points[..., 1]
        return disc + np.stack([side * (np.cos(turn) * x - np.sin(turn) * y), np.sin(turn) * x + np.cos(turn) * y], -1)

    fovea = place(np.array([distance, 0.0]))
    tree = _vessel_tree(rng)
    # Color and light differ between patients and cameras, never between grades.
    kinds = np.array([(188, 90, 18), (165, 84, 22), (140, 66, 26), (172, 96, 48), (205, 98, 16)])
    color = rng.dirichlet(np.full(5, 0.6)) @ kinds
    color = color * np.exp(rng.normal(-0.03, 0.15) + rng.normal(0, (0.03, 0.07, 0.45)))
    color = np.clip(color, [0, 0.40 * color[0], 8], [235, 0.62 * color[0], 0.36 * color[0]])
    light = {
        "falloff": rng.uniform(0.16, 0.38),  # towards the edge of the field of view
        "tilt": rng.uniform(0, 0.22),  # across it
        "tilt_angle": rng.uniform(0, 2 * np.pi),
        "haze": max(0.0, rng.normal(-0.05, 0.3)),  # a bright crescent at one side
        "haze_angle": rng.uniform(0, 2 * np.pi),
        "fibers": rng.uniform(0.05, 0.22),  # brightness of the nerve fibers around the disc
        "macula": rng.uniform(0.25, 0.48),  # its darkness
        "cup": rng.uniform(0.35, 0.55),  # cup-to-disc ratio
        "pale": rng.uniform(0, 1),  # of the disc
        "texture": rng.uniform(0.02, 0.05),  # of the pigment
        "choroid": max(0.0, rng.normal(0.0, 0.035)),  # how visible it is
        "blur": rng.uniform(0.0004, 0.0017),  # of the camera, in diameters
        "noise": rng.uniform(0.7, 2.0),  # of the camera, in grey levels
        "disc_wide": rng.uniform(0.9, 1.0),
        "disc_size": rng.uniform(0.94, 1.07),
    }
    eye = Eye(disc, fovea, place(tree[-1][0])[:4, 4:].reshape(-1, 2), color, light)
    for path, direction, width, vein in tree:
        # No vessel reaches the foveal avascular zone.
        width = width * np.clip((np.hypot(path[..., 0] - distance, path[..., 1]) - 0.035) / 0.08, 0, 1)
        eye.add("vessels", place(_ribbons(path, direction, width)), np.where(vein, 235, 165))
    path, direction, width, _ = tree[-1]
    eye.add("vessels", place(_ribbons(path, direction, width * 0.3))[::2], 105)  # the light reflex on the arteries
    return eye


def _blobs(rng, centers, radii, rough=0.2, elongation=1.0, angle=0.0, points=18):
    """Return irregular round outlines [N, P, 2]: circles with disturbed low harmonics."""
    n = len(centers)
    around = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = 1
    for k in (2, 3, 5):
        r = r + rough / k**0.7 * rng.normal(0, 0.6, (n, 1)) * np.cos(k * around + rng.uniform(0, 2 * np.pi, (n, 1)))
    r = np.clip(r, 0.4, 1.7) * radii[:, None]
    stretch, angle = (np.broadcast_to(v, n)[:, None] for v in (np.sqrt(elongation), angle))
    u, v = r * np.cos(around) * stretch, r * np.sin(around) / stretch
    c, s = np.cos(angle), np.sin(angle)
    return centers[:, None] + np.stack([c * u - s * v, s * u + c * v], -1)


def _scatter(rng, eye, n, quadrants=(0, 1, 2, 3), fovea_gap=0.03, inside=0.43):
    """Return `n` points [n, 2] in the field of view, off disc and fovea, in the given quadrants around the fovea."""
    found = np.zeros((0, 2))
    while len(found) < n:
        p = rng.uniform(-inside, inside, (4 * n + 16, 2)) * [1, 0.92]
        fits = np.isin((p[:, 0] > eye.fovea[0]) + 2 * (p[:, 1] > eye.fovea[1]), quadrants)
        fits &= (np.hypot(*p.T) < inside) & (np.hypot(*(p - eye.disc).T) > 0.115)
        found = np.concatenate([found, p[fits & (np.hypot(*(p - eye.fovea).T) > fovea_gap)]])
    return found[:n]


def _count(rng, span):
    return int(rng.integers(span[0], span[1] + 1))


def _add_red_lesions(rng, eye, grade):
    """Add microaneurysms and hemorrhages."""
    n = _count(rng, MICROANEURYSMS[grade])
    if n:
        blobs = _blobs(rng, _scatter(rng, eye, n), rng.uniform(0.0050, 0.0082, n), 0.1)
        eye.add("MA", blobs, rng.integers(200, 256, n))
    n = _count(rng, HEMORRHAGES[grade])
    if n:
        # Up to three quadrants at grade 2; severe means all four (the 4-2-1 rule).
        quadrants = rng.permutation(4)[: rng.integers(1, 4)] if grade == 2 else np.arange(4)
        centers = _scatter(rng, eye, n, quadrants)
        flame = rng.random(n) < (0.35 if grade > 2 else 0.1)  # flames lie along the nerve fibers, away from the disc
        away = centers - eye.disc
        size = np.exp(rng.normal(np.log(0.0100), 0.48, n)) * np.where(flame, 1.3, 1)
        long = np.where(flame, rng.uniform(2, 4, n), 1)
        blobs = _blobs(rng, centers, size.clip(0.0055, 0.034), 0.42, long, np.arctan2(away[:, 1], away[:, 0]), 24)
        eye.add("HE", blobs, rng.integers(150, 246, n))


def _add_bright_lesions(rng, eye, grade):
    """Add hard and soft exudates; return the risk of macular edema that follows from the hard ones."""
    edema = int(rng.choice(3, p=EDEMA[grade]))
    if edema:
        near = DISC_DIAMETER * 0.85
        n = int(rng.integers(2, 5 if grade == 2 else 7))
        around, out = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.04, near, n)
        far = _scatter(rng, eye, n, fovea_gap=DISC_DIAMETER + 0.07, inside=0.36)
        inner = np.stack([np.cos(around), np.sin(around)], 1) * out[:, None] + eye.fovea
        cluster_centers = np.where(((rng.random(n) < 0.6) | (np.arange(n) == 0))[:, None] & (edema == 2), inner, far)
        each = rng.integers(12, 60, n)
        owner = np.repeat(np.arange(n), each)
        spread = rng.uniform(0.012, 0.035, (n, 1))[owner]
        offset = np.clip(rng.normal(0, 1, (len(owner), 2)), -1.8, 1.8) * spread
        offset[np.cumsum(each) - each] = 0  # the first of a cluster lies at its center
        centers = cluster_centers[owner] + offset
        radii = np.exp(rng.normal(np.log(0.0029), 0.5, len(owner))).clip(0.0014, 0.012)
        radii[np.hypot(*offset.T) < 0.5 * spread[:, 0]] *= 1.7  # they merge in the middle
        away = np.hypot(*(centers - eye.fovea).T)
        fits = (np.hypot(*centers.T) < 0.45) & (np.abs(centers[:, 1]) < 0.395)
        fits &= np.hypot(*(centers - eye.disc).T) > 0.1
        fits &= (away > DISC_DIAMETER * 1.15) if edema == 1 else (away > 0.02)
        fits[np.cumsum(each) - each] = True  # cluster centers are valid by construction
        blobs = _blobs(rng, centers[fits], radii[fits], 0.55, points=12)
        eye.add("EX", blobs, rng.integers(140, 256, len(blobs)))
    n = _count(rng, SOFT_EXUDATES[grade])
    if n:
        centers = _scatter(rng, eye, n, fovea_gap=0.12, inside=0.40)
        sizes, long, angle = rng.uniform(0.012, 0.024, n), rng.uniform(1, 1.8, n), rng.uniform(0, np.pi, n)
        eye.add("SE", _blobs(rng, centers, sizes, 0.3, long, angle))
    return edema


def _add_new_vessels(rng, eye):
    """Add the new vessels of grade 4: tangles of fine vessels, with preretinal hemorrhage or fibrous tissue."""
    tangles = int(rng.integers(3, 6))
    origins = eye.arcades[rng.integers(len(eye.arcades), size=12)]
    origins = origins[(np.hypot(*origins.T) < 0.40) & (np.abs(origins[:, 1]) < 0.37)][:tangles]
    if rng.random() < 0.6 or not len(origins):
        origins = np.concatenate([origins, eye.disc[None]])
    n = 20 * len(origins)
    start = np.repeat(origins, 20, 0) + rng.normal(0, 0.008, (n, 2))
    turn = np.repeat(rng.uniform(-np.pi, np.pi, len(origins)), 20) + rng.normal(0, 0.8, n)  # a fan from each tangle
    curl = rng.choice([-1, 1], n) * rng.uniform(0.5, 4, n)
    curves = _grow(rng, start, turn, turn + curl, 0.06, rng.uniform(0.06, 0.16, n), 0.0042, 0.9, taper=0.5)
    eye.add("new", _ribbons(*curves), rng.integers(120, 250, n))
    if rng.random() < 0.7:  # boat-shaped preretinal hemorrhage: level above, round below
        center = _scatter(rng, eye, 1, fovea_gap=0.1, inside=0.3)
        around = np.linspace(0, np.pi, 24)
        wide, deep = rng.uniform(0.06, 0.14), rng.uniform(0.05, 0.10)
        deep = deep * (1 + sum(a * np.sin(k * around + rng.uniform(0, 6)) for k, a in ((3, 0.12), (7, 0.06))))
        boat = np.stack([wide * np.cos(around), deep * np.sin(around) ** 0.7 - 0.006 * np.cos(4 * around)], 1)
        eye.add("HE", (center + boat)[None], 240)
    if rng.random() < 0.45:  # white fibrous tissue on the vessels
        start = np.repeat(origins[-1:], 6, 0)
        turn = rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.5, 6)
        length, width = rng.uniform(0.1, 0.25, 6), rng.uniform(0.01, 0.025, 6)
        curves = _grow(rng, start, turn, turn + rng.normal(0, 0.8, 6), 0.15, length, width, 0.25)
        eye.add("fibrous", _ribbons(*curves), 190)


def make_eye(eye_rng: np.random.Generator, lesion_rng: np.random.Generator, grade: int) -> tuple[Eye, int]:
    """Make an eye with the lesions of `grade` (0 to 4), and return it with its risk of macular edema (0 to 2).

    The same state of `eye_rng` gives the same eye at every grade.
    """
    eye = _healthy_eye(eye_rng)
    _add_red_lesions(lesion_rng, eye, grade)
    edema = _add_bright_lesions(lesion_rng, eye, grade)
    if grade == 4:
        _add_new_vessels(lesion_rng, eye)
    return eye, edema
