"""Phantom of IDRiD: synthetic fundus photographs whose lesions increase with the grade, in IDRiD's layout.

It serves first runs and tests without the release, and contains no photograph of a patient. Sizes, colors and the frame
(a round field of view cut at top and bottom, off center, a black bar on the right, the two teeth of the camera's mask)
follow IDRiD (Porwal et al., Data 2018, 3(3):25); the grades follow the ICDR scale (Wilkinson et al., Ophthalmology
2003, 110(9)).

`phantom_eye` makes an eye, its lesions and the light as shapes and numbers without pixels; this file renders them, so
the same random state gives the same photograph at any size.
"""

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from idrid_jax.data.phantom_eye import DISC_RADIUS, Eye, make_eye
from idrid_jax.data.release import SPLITS, ReleaseWriter
from idrid_jax.errors import UserError

ASPECT = 4288 / 2848  # IDRiD's frame
DIAMETER = 3413 / 2848  # of the field of view, in frame heights: columns 274 to 3687
CENTER = 1980.5 / 4288  # of the field of view, in frame widths
TEETH = (
    (0.40, -0.29), (0.413, -0.284), (0.438, -0.277), (0.433, -0.251), (0.457, -0.244), (0.453, -0.218), (0.42, -0.21),
)  # fmt: skip
QUALITY = 92  # JPEG

NOTICE = """A phantom of IDRiD, made by idrid_jax.

These are NOT photographs of patients. Every image was rendered by a program from random numbers (seed {seed}), with the
grades, masks and centers given here. Layout, names and file formats are those of the Indian Diabetic Retinopathy Image
Dataset (doi:10.21227/H25W98), which is not contained here. Nothing learned from this release says anything about
diabetic retinopathy.
"""


@dataclass(frozen=True)
class Phantom:
    """A synthetic photograph with its ground truth.

    Attributes:
      image: uint8 [H, W, 3], RGB.
      masks: lesion ("MA", "HE", "EX", "SE", "OD") -> bool [H, W]; an absent lesion has no key.
      disc, fovea: centers (x, y) in pixels; (0, 0) is the middle of the first pixel.
      edema: risk of macular edema as in IDRiD's paper: 0 without hard exudates, 1 if none lies within one disc diameter
        of the fovea, 2 otherwise.
    """

    image: np.ndarray
    masks: dict[str, np.ndarray]
    disc: tuple[float, float]
    fovea: tuple[float, float]
    edema: int


def _smooth(rng, cells, size):
    """Return a smooth random field, float32 [H, W], about N(0, 1), with `cells` knots over the height at any size."""
    knots = rng.standard_normal((cells, round(cells * ASPECT))).astype(np.float32)
    return np.asarray(Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC))


@functools.lru_cache(maxsize=1)
def _frame(height: int, width: int):
    """Return what all photographs of a size have in common.

    These are the diameter and the center (x, y) of the field of view in pixels; x [1, W] and y [H, 1] in diameters; the
    square of the radius [H, W], 1 at the edge; and the share of each pixel that the camera's mask leaves free [H, W].
    """
    diameter = min(DIAMETER * height, DIAMETER / ASPECT * width)
    center = np.array([CENTER * width, height / 2])
    x = ((np.arange(width) + 0.5 - center[0]) / diameter).astype(np.float32)[None]
    y = ((np.arange(height) + 0.5 - center[1]) / diameter).astype(np.float32)[:, None]
    square = 4 * (x * x + y * y)
    view = np.clip((0.5 - 0.5 * np.sqrt(square)) * np.float32(diameter) + 0.5, 0, 1)
    teeth = _rasterize([(np.array(TEETH), 255)], height, width, diameter, center)
    return diameter, center, x, y, square, np.maximum(view, _share(teeth))


def _rasterize(polygons, height, width, diameter, center) -> Image.Image:
    """Rasterize polygons to a layer of mode L: the share of each pixel that they cover, times their strength."""
    fine = int(np.clip(round(1424 / height), 1, 4))  # Pillow does not antialias: draw larger, then reduce
    layer = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(layer)
    for points, strength in polygons:
        pen.polygon(((points * diameter + center) * fine - 0.5).ravel().tolist(), fill=strength)
    return layer.reduce(fine) if fine > 1 else layer


def _share(layer: Image.Image, blur: float = 0.0) -> np.ndarray:
    """Return a layer as float32 [H, W] in [0, 1], blurred with a standard deviation of `blur` pixels."""
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(blur)) if blur else layer, np.float32) * np.float32(1 / 255)


def _mix(image, cover, color):
    """Blend a color [3] into the image [3, H, W] by `cover` [H, W], in place."""
    for channel, value in zip(image, np.asarray(color, float).tolist(), strict=True):
        channel += cover * (min(value, 255.0) - channel)


def _render(eye: Eye, rng, height: int, width: int):
    """Render an eye: the photograph uint8 [H, W, 3], and its masks."""
    diameter, center, x, y, square, view = _frame(height, width)
    light, size = eye.light, (width, height)
    layers = {name: _rasterize(polygons, height, width, diameter, center) for name, polygons in eye.layers.items()}
    # Python floats: NumPy's would turn float32 images into float64
    disc_x, disc_y, fovea_x, fovea_y = *eye.disc.tolist(), *eye.fovea.tolist()

    def spot(at_x, at_y, sx, sy):  # a separable Gaussian of height 1
        return np.exp(-0.5 * ((x - at_x) / sx) ** 2) * np.exp(-0.5 * ((y - at_y) / sy) ** 2)

    # The retina: uneven pigment, the choroid behind it, the macula's pigment, nerve fibers around the disc.
    bright = light["texture"] * (_smooth(rng, 5, size) + 0.6 * _smooth(rng, 13, size))
    bright += light["choroid"] * (_smooth(rng, 27, size) + 0.7 * _smooth(rng, 60, size))
    bright -= light["macula"] * (0.6 * spot(fovea_x, fovea_y, 0.07, 0.07) + 0.4 * spot(fovea_x, fovea_y, 0.03, 0.03))
    bright += light["fibers"] * (spot(disc_x, disc_y, 0.16, 0.24) + 0.4 * spot(disc_x, disc_y, 0.3, 0.3))
    red, green, blue = eye.color.tolist()
    image = np.stack([red * (1 + 0.75 * bright), green * (1 + 1.1 * bright), blue * (1 + bright)])
    # The disc: a pale ellipse with a soft border, paler in its cup.
    wide = DISC_RADIUS * light["disc_size"] * light["disc_wide"]
    tall = DISC_RADIUS * light["disc_size"] / light["disc_wide"]
    away = np.sqrt(((x - disc_x) / wide) ** 2 + ((y - disc_y) / tall) ** 2)
    temporal = math.copysign(0.012, fovea_x - disc_x)
    cup = ((x - disc_x - temporal) / (light["cup"] * wide)) ** 2 + ((y - disc_y) / (light["cup"] * tall)) ** 2
    inside = np.clip((1 - away) / 0.10 + 0.5, 0, 1)
    rim = np.minimum(eye.color * 1.15 + [62, 58, 8], [252, 178, 90]) + light["pale"] * np.array([0, 14, 40])
    _mix(image, 0.16 * np.exp(-0.5 * (np.maximum(away - 1, 0) / 0.14) ** 2), rim)
    _mix(image, inside * 0.85, rim)
    hollow = np.minimum(eye.color * 1.1 + [90, 118, 30], [255, 236, 140]) + light["pale"] * np.array([0, 6, 40])
    _mix(image, inside * np.exp(-0.5 * cup * cup) * 0.8, hollow)
    # Lesions in the retina, then the vessels, then lesions in front of them.
    glow = float(np.clip(eye.color[0] / 170, 0.75, 1.15))
    blood = eye.color * [0.62, 0.33, 0.55]
    for name, strength, blur, color in (
        ("SE", 0.72, 0.006, np.array([232, 206, 140]) * glow),
        ("EX", 1.0, 0, np.array([250, 216, 82]) * glow),
        ("vessels", 0.80, 0, eye.color * [0.78, 0.40, 0.7] + [0, 0, 5]),
        ("HE", 0.88, 0.0018, blood),
        ("MA", 0.88, 0.0008, blood),
        ("new", 0.9, 0, eye.color * [0.76, 0.32, 0.65]),
        ("fibrous", 0.6, 0.008, np.array([190, 170, 150]) * glow),
    ):
        if name in layers:
            _mix(image, strength * _share(layers[name], blur * diameter), color)
    # The camera: falloff of the light, haze at one side of the edge, blur, noise, and the mask.
    fall = 1.06 - light["falloff"] * square * np.sqrt(np.sqrt(square))
    image *= fall + light["tilt"] * (math.cos(light["tilt_angle"]) * x + math.sin(light["tilt_angle"]) * y)
    if light["haze"]:
        toward = 0.5 + math.cos(light["haze_angle"]) * x + math.sin(light["haze_angle"]) * y
        _mix(image, light["haze"] * np.minimum(square, 1) ** 4 * toward, (180, 150, 85))
    image *= view
    image = np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(image)).filter(ImageFilter.GaussianBlur(light["blur"] * diameter))
    noise = rng.standard_normal((height, width), np.float32) * (light["noise"] * (0.15 + 0.85 * view))
    image = np.clip(np.asarray(image) + np.rint(noise).astype(np.int16)[..., None], 0, 255).astype(np.uint8)

    masks = {"OD": away <= 1}
    for name in ("MA", "HE", "EX", "SE"):
        if name in layers:
            cover = np.asarray(layers[name])
            masks[name] = cover > min(64, int(cover.max()) // 2)  # at small sizes, small lesions never cover a pixel
    return image, {name: mask & (view > 0.5) for name, mask in masks.items()}


def make_photograph(rng: np.random.Generator, grade: int, height: int, width: int) -> Phantom:
    """Make a fundus photograph of `grade` (0 to 4, ICDR scale) with `height` x `width` pixels, each at least 64.

    It is a function of the state of `rng`: the same state gives the same photograph at another size, except for the
    camera's noise, and the same eye with other lesions at another grade. IDRiD's aspect ratio is 4288:2848; with others
    the field of view stays round. Raises UserError for a grade or a size out of range.
    """
    if grade not in range(5):
        raise UserError(f"phantom: grade {grade} is not one of 0 to 4")
    if min(height, width) < 64:
        raise UserError(f"phantom: {height}x{width} pixels is too small to show lesions; give at least 64 each")
    eye_rng, lesion_rng, camera_rng = (np.random.default_rng(s) for s in rng.integers(2**63, size=3))
    eye, edema = make_eye(eye_rng, lesion_rng, grade)
    image, masks = _render(eye, camera_rng, height, width)
    diameter, center, *_ = _frame(height, width)
    disc, fovea = (tuple(map(float, p * diameter + center - 0.5)) for p in (eye.disc, eye.fovea))
    return Phantom(image, masks, disc, fovea, edema)


def encode(image: np.ndarray) -> bytes:
    """Encode a photograph, uint8 [H, W, 3], like IDRiD's: baseline JPEG, 4:2:0 (quality 92)."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return out.getvalue()


def _is_whole(n) -> bool:
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool)


def _check(name: str, counts, length: int) -> tuple[int, ...]:
    counts = tuple(counts)
    if len(counts) != length or not all(_is_whole(n) and n >= 0 for n in counts):
        raise UserError(f"phantom: --{name} {','.join(map(str, counts))}: give {length} whole numbers of at least 0")
    return counts


def make_release(
    out: str | Path,
    *,
    seed: int = 0,
    train: Sequence[int] = (39, 6, 39, 21, 14),
    test: Sequence[int] = (10, 2, 9, 6, 4),
    segmentation: Sequence[int] = (8, 4),
    localization: bool = True,
    height: int = 178,
) -> Path:
    """Write a phantom release to the new folder `out`, in IDRiD's layout; return `out`.

    The bytes are a function of the arguments: each photograph has the generator default_rng([seed, part, split,
    number]). Grades are shuffled, so an id does not reveal the grade.

    Args:
      out: must not exist or be empty.
      seed: of the whole release, at least 0.
      train, test: photographs of part B per grade 0 to 4; by default as uneven as IDRiD's, and 3/10 as many.
      segmentation: training and test photographs of part A, of grades 1 to 4 in turn, with a mask for each of their
        lesions. None of them is in part B (in IDRiD, 60 of 81 are).
      localization: write part C, with the same photographs as part B.
      height: of photographs in pixels, 64 to 2848; their aspect ratio is IDRiD's.

    Raises UserError for options out of range, and as `ReleaseWriter` does.
    """
    graded = {"train": _check("train", train, 5), "test": _check("test", test, 5)}
    segmentation = _check("segmentation", segmentation, 2)
    if not _is_whole(seed) or seed < 0:
        raise UserError(f"phantom: seed is {seed}; give a whole number of at least 0")
    if not _is_whole(height) or not 64 <= height <= 2848:
        raise UserError(f"phantom: --height {height}: give a whole number from 64 to 2848 (IDRiD's own)")
    if not any((*graded["train"], *graded["test"], *segmentation)):
        raise UserError("phantom: train, test and segmentation are all 0; ask for at least one photograph")
    width = round(height * ASPECT)
    out = Path(out)
    with ReleaseWriter(out, NOTICE.format(seed=seed)) as writer:
        for k, split in enumerate(SPLITS):
            parts = (1 + np.arange(segmentation[k]) % 4, np.repeat(np.arange(5), graded[split]))
            for part, grades in enumerate(parts):
                # Ids start at 1, so number 0 is free for the order.
                order = np.random.default_rng([seed, part, k, 0]).permutation(grades)
                for number, grade in enumerate(order.tolist(), 1):
                    made = make_photograph(np.random.default_rng([seed, part, k, number]), grade, height, width)
                    data = encode(made.image)
                    if part == 0:
                        writer.add_segmented(split, data, made.masks)
                        continue
                    writer.add_graded(split, data, grade, made.edema)
                    if localization:
                        writer.add_located(split, data, made.disc, made.fovea)
    return out
