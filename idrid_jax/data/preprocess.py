"""A photograph's bytes -> a square uint8 array. Both ways in share this file, through `cache`.

Decisions, all part of `VERSION`:

- EXIF orientation is ignored: IDRiD's masks and coordinates count the pixels as they are stored.
- 16-bit grey is scaled by its full range (65535 -> 255, a division by 257), never by the brightest pixel: a dark
  photograph stays dark. Transparency is laid over black, which is what lies around a retina.
- Large JPEGs are decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled inverse DCT, which averages exactly), always to at least
  1.25 times the pixels that the result needs: on full-size IDRiD photographs, sizes 64 to 1024, within 0.6 of 255 of
  the full decode at the mean and 3 at the 99th percentile; the box within one of 512 pixels.
- Pillow makes the size, antialiased, by its Hamming filter (bicubic to enlarge). Aliased filters change what a
  generator learns and what FID says (Parmar, Zhang, Zhu, "On Aliased Resizing", CVPR 2022). At 256 pixels Hamming takes
  1.0 ms and keeps 87 % of the contrast of the finest band, Lanczos 2.2 ms and 95 %; decoding takes 7.5.
"""

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

from idrid_jax.errors import UserError

VERSION = 3  # raise it whenever the pixels change: it is part of the cache's key
CROPS = ("field_of_view", "letterbox")

MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB of RGB); IDRiD has 12 million
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # and no others: fewer parsers for bytes from anywhere
OVERSAMPLING = 1.25  # decoded pixels per pixel of the result, at least
_CELLS = 64  # of the grid on which the field of view is looked for, along the longer side
# Where between the black (0) and the retina's bright parts (1) the retina begins. On the 516 photographs of IDRiD every
# value from 0.13 to 0.16 gives the same boxes to 2 pixels of 512; below, the lens's halo is taken in (0.07: 48 boxes);
# above, dark rims of the retina are lost (0.2: two boxes).
_RETINA_LEVEL = 0.15

# `decode` refuses such a file itself, in one line; Pillow's warning before it says nothing more.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, name: str, least: int | None = None) -> np.ndarray:
    """Decodes a photograph: JPEG, PNG, TIFF or BMP; RGB, grey (8 or 16 bits), palette, with alpha, CMYK.

    Args:
      data: the file's bytes.
      name: what messages call the file.
      least: the smallest side that the caller needs, in pixels; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its
        size, with neither side below `least`. None: at full size.

    Returns:
      uint8 [H, W, 3], RGB, 0..255. EXIF orientation is ignored; 16 bits are divided by 257; alpha is laid over black.

    Raises:
      UserError: not an image, damaged or cut short, more than `MAX_PIXELS`, or of a pixel type without a known range.
    """
    return np.asarray(load(data, name, least))


def load(data: bytes, name: str, least: int | None = None) -> Image.Image:
    # Pillow's parsers raise whatever damaged bytes lead them into (OSError, SyntaxError, struct.error, ...): all of it
    # means that the file is bad, so the two calls that parse catch everything.
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels; a decompression bomb, or not a photograph") from None
    except Exception:
        raise UserError(f"{name}: not a JPEG, PNG, TIFF or BMP image ({len(data)} bytes); replace the file") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS} pixels; "
            "a decompression bomb, or not a photograph"
        )
    if least is not None:
        image.draft(None, (least, least))  # of JPEG only; Pillow takes the smallest scale with both sides >= least
    try:
        image.load()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: damaged or cut short ({reason}); copy or download the file again") from None
    return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I", which older Pillow gives for 16-bit PNG
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: pixels from {values.min()} to {values.max()}; give an image of 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{name}: float pixels have no known range; give an image of 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def field_of_view(image: np.ndarray | Image.Image) -> tuple[int, int, int, int]:
    """Finds the box around the retina: the largest lit region, wherever it lies and whatever edges cut it.

    Brightness is the largest of the three channels, as a retina may have next to no green and blue. The level that
    parts it from the black is relative to the photograph's own dark and bright (1st and 95th percentile), so that dark
    photographs work; an opening and the choice of the largest region leave specks and text out. The region is looked
    for on a coarse grid of pixels, and each of its edges then among the lines of the next two cells.

    Args:
      image: uint8 [H, W, 3] or [H, W], or the same as a Pillow image.

    Returns:
      (left, top, right, bottom) in pixels, right and bottom exclusive. The whole frame where there is no black around
      the retina, or nothing but black.
    """
    from scipy import ndimage  # late: training on a cache that is there needs none of it

    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = image.size
    cell = max(1, max(width, height) // _CELLS)
    covered = (width // cell * cell, height // cell * cell)
    if 0 in covered:
        return 0, 0, width, height
    # NEAREST takes the pixel in the middle of each cell
    grid = image.resize((covered[0] // cell, covered[1] // cell), Image.Resampling.NEAREST, (0, 0, *covered))
    brightness = _brightness(grid)
    at = [brightness.size // 100, brightness.size * 95 // 100]
    dark, bright = np.partition(brightness.ravel(), at)[at].astype(float)
    if dark >= bright / 3:  # no black anywhere
        return 0, 0, width, height
    level = dark + _RETINA_LEVEL * (bright - dark)
    regions, found = ndimage.label(ndimage.binary_opening(brightness > level, np.ones((3, 3))))
    if not found:
        return 0, 0, width, height
    largest = ndimage.find_objects(regions)[np.argmax(np.bincount(regions.ravel())[1:])]
    top, bottom, left, right = (index * cell + cell // 2 for part in largest for index in (part.start, part.stop - 1))

    def edge(before, after, axis, first):
        """The first or last line between two, of those across `axis`, of which two cells' length is lit."""
        box = (before, top, after, bottom + 1) if axis == 0 else (left, before, right + 1, after)
        across, along = box[2] - box[0], box[3] - box[1]
        every = (across, -(-along // 8)) if axis == 0 else (-(-across // 8), along)  # an eighth of each line will do
        lit = np.count_nonzero(_brightness(image.resize(every, Image.Resampling.NEAREST, box)) > level, axis=axis)
        lines = np.flatnonzero(8 * lit >= 2 * cell)
        if not len(lines):
            return after - 1 if first else before + 1
        return before + int(lines[0]) if first else before + int(lines[-1]) + 1

    reach = 2 * cell
    return (
        edge(max(0, left - reach), left + 1, 0, True),
        edge(max(0, top - reach), top + 1, 1, True),
        edge(right, min(width, right + 1 + reach), 0, False),
        edge(bottom, min(height, bottom + 1 + reach), 1, False),
    )


def _brightness(image: Image.Image) -> np.ndarray:
    """uint8 [H, W]"""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 2 else np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def square_within(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The square with the box's centre and its smaller side, so that nothing but retina and its corners is in it.

    IDRiD's camera cuts the field of view at top and bottom: of 3413 columns 2848 stay, 8 % less on either side. The
    square around the whole field would be one sixth black bars.
    """
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def preprocess(data: bytes, name: str, *, size: int, channels: int, crop: str) -> np.ndarray:
    """Makes a photograph into the square array that networks are trained on.

    Args:
      data: the file's bytes.
      name: what messages call the file.
      size: side of the result in pixels; above the source's own, pixels are interpolated.
      channels: 3 (RGB) or 1 (grey: ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114 B).
      crop: "field_of_view": the square within the retina's box, see `square_within`. "letterbox": the whole frame,
        aspect kept, black bars (the thesis's way, section 3.2).

    Returns:
      uint8 [size, size, channels], 0..255.

    Raises:
      UserError: what `decode` refuses; an unknown crop, or a size or number of channels that cannot be.
    """
    check_options(size, channels, crop)
    least = math.ceil(OVERSAMPLING * size)
    image = load(data, name, least)
    if crop == "field_of_view":
        square = square_within(field_of_view(image))
        if square[2] - square[0] < least <= min(image.size):
            image = load(data, name)  # a small field in a large frame: decoded at full size after all
            square = square_within(field_of_view(image))
        image = image.convert("L") if channels == 1 else image
        shrunk = square[2] - square[0] >= size
        filter = Image.Resampling.HAMMING if shrunk else Image.Resampling.BICUBIC
        image = image.resize((size, size), filter, square)
    else:
        image = image.convert("L") if channels == 1 else image
        image = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def side_held(data: bytes, name: str, crop: str, enough: int) -> int:
    """The size up to which `preprocess` shrinks this photograph; above it pixels are made up. To 1 % or so.

    enough: any number from this on will do, so that a frame of four times as much is not searched for its retina.
    Raises UserError for what `decode` refuses.
    """
    image = load(data, name, 256)
    with Image.open(io.BytesIO(data)) as whole:  # its header
        width, height = whole.size
    if crop == "letterbox":
        return max(width, height)
    if min(width, height) >= 4 * enough:
        return min(width, height) // 4
    left, _, right, _ = square_within(field_of_view(image))
    return round((right - left) * width / image.width)


def check_options(size: int, channels: int, crop: str) -> None:
    """Raises UserError, naming the option, where `preprocess` could not follow it."""
    if crop not in CROPS:
        raise UserError(f"crop {crop!r} is not known; choose one of {', '.join(CROPS)}")
    if channels not in (1, 3):
        raise UserError(f"channels {channels!r} is neither 1 (grey) nor 3 (RGB)")
    if not 1 <= size <= 8192:
        raise UserError(f"size {size!r} is not between 1 and 8192 pixels")
