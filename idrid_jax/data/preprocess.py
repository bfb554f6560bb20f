"""Preprocess a photograph: its file's bytes to a square uint8 array. `cache` stores the results.

Decisions, all part of `VERSION`:

- EXIF orientation is ignored: IDRiD's masks and coordinates refer to the pixels as stored.
- 16-bit grey is scaled by its full range (division by 257), not by the brightest pixel: dark photographs stay dark.
  Transparent images are composited over black, the color around a retina.
- Large JPEGs are decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled inverse DCT, an exact average), to at least 1.25 times
  the pixels of the result. On full-size IDRiD photographs at sizes 64 to 1024, the result differs from that of a full
  decode by 0.6 of 255 in the mean and 3 at the 99th percentile, and the box by at most one of 512 pixels.
- Pillow resizes, antialiased, with its Hamming filter (bicubic to enlarge). Aliased filters change what a generator
  learns and the value of FID (Parmar, Zhang, Zhu, "On Aliased Resizing", CVPR 2022). At 256 pixels Hamming takes
  1.0 ms and preserves 87 % of the contrast of the finest band, Lanczos 2.2 ms and 95 %; decoding takes 7.5 ms.
"""

import io
import math

import numpy as np
from PIL import Image, ImageOps

from idrid_jax.errors import UserError

VERSION = 3  # of the pixels; increment it when they change: it is part of the cache's key
CROPS = ("field_of_view", "letterbox")

MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB of RGB); IDRiD has 12 million
FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # no others, so that few parsers see untrusted bytes
OVERSAMPLING = 1.25  # least decoded pixels per pixel of the result, along a side
GRID_CELLS = 64  # of the grid on which the field of view is searched, along the longer side
# Brightness from which pixels belong to the retina, between the black around it (0) and its bright parts (1). On the
# 516 photographs of IDRiD, values from 0.13 to 0.16 give the same boxes within 2 of 512 pixels; lower ones include the
# lens's halo (0.07: 48 boxes), higher ones lose dark rims of the retina (0.2: two boxes).
FIELD_THRESHOLD = 0.15
RETINA_THRESHOLD = 0.15  # of the 95th percentile of brightness, for `retina_mask`


def decode(data: bytes, name: str, min_side: int | None = None) -> np.ndarray:
    """Decode a photograph: JPEG, PNG, TIFF or BMP; RGB, grey (8 or 16 bits), palette, with alpha, or CMYK.

    Args:
      data: the file's bytes.
      name: the file's name, for messages.
      min_side: the least side in pixels that the caller needs. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its
        size, with both sides at least `min_side`. None decodes at full size.

    Returns:
      uint8 [H, W, 3], RGB, 0..255. EXIF orientation is ignored; 16 bits are divided by 257; alpha is laid over black.

    Raises:
      UserError: not an image, damaged or truncated, more than `MAX_PIXELS`, or of a pixel type without a known range.
    """
    return np.asarray(decode_image(data, name, min_side))


def decode_image(data: bytes, name: str, min_side: int | None = None) -> Image.Image:
    """Decode a photograph to a Pillow image of mode RGB; see `decode`."""
    # Pillow's parsers raise errors of many types on damaged files (OSError, SyntaxError, struct.error, ...).
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels; a decompression bomb, or not a photograph") from None
    except Exception:
        raise UserError(f"{name}: not a JPEG, PNG, TIFF or BMP image ({len(data)} bytes); replace the file") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS} pixels; "
            "a decompression bomb, or not a photograph"
        )
    if min_side is not None:
        image.draft(None, (min_side, min_side))  # JPEG only: the smallest scale with both sides >= min_side
    try:
        image.load()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: damaged or truncated ({reason}); copy or download the file again") from None
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
    """Find the bounding box of the retina: the largest bright region, even if the frame cuts it.

    Brightness is the maximum of the three channels, since a retina may have almost no green and blue. The threshold is
    relative to the photograph's own dark and bright (1st and 95th percentile), so dark photographs work. A
    morphological opening and the choice of the largest region exclude specks and text. The region is searched on a
    coarse grid of pixels, and then each of its edges among the lines of the two cells next to it.

    Args:
      image: uint8 [H, W, 3] or [H, W], or the same as a Pillow image.

    Returns:
      (left, top, right, bottom) in pixels, right and bottom exclusive; the whole frame if there is no black around
      the retina, or only black.
    """
    from scipy import ndimage  # imported late: training from a filled cache does not need it

    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = image.size
    cell = max(1, max(width, height) // GRID_CELLS)
    covered = (width // cell * cell, height // cell * cell)
    if 0 in covered:
        return 0, 0, width, height
    # NEAREST takes the middle pixel of each cell
    grid = image.resize((covered[0] // cell, covered[1] // cell), Image.Resampling.NEAREST, (0, 0, *covered))
    brightness = _brightness(grid)
    at = [brightness.size // 100, brightness.size * 95 // 100]
    dark, bright = np.partition(brightness.ravel(), at)[at].astype(float)
    if dark >= bright / 3:  # no black around the retina
        return 0, 0, width, height
    level = dark + FIELD_THRESHOLD * (bright - dark)
    regions, found = ndimage.label(ndimage.binary_opening(brightness > level, np.ones((3, 3))))
    if not found:
        return 0, 0, width, height
    largest = ndimage.find_objects(regions)[np.argmax(np.bincount(regions.ravel())[1:])]
    top, bottom, left, right = (index * cell + cell // 2 for part in largest for index in (part.start, part.stop - 1))

    def edge(before, after, axis, first):
        """Return the first or last line from `before` to `after`, across `axis`, with two cells of bright pixels."""
        box = (before, top, after, bottom + 1) if axis == 0 else (left, before, right + 1, after)
        across, along = box[2] - box[0], box[3] - box[1]
        every = (across, -(-along // 8)) if axis == 0 else (-(-across // 8), along)  # an eighth of each line is enough
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


def retina_mask(brightness: np.ndarray) -> np.ndarray:
    """Return which pixels belong to the retina: bool [..., H, W], for brightness, float [..., H, W], black = 0.

    They are brighter than a share of the image's own 95th percentile. `field_of_view` uses another rule, which also
    considers how dark the frame is.
    """
    return brightness > RETINA_THRESHOLD * np.percentile(brightness, 95, axis=(-2, -1), keepdims=True)


def _brightness(image: Image.Image) -> np.ndarray:
    """uint8 [H, W]"""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 2 else np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])


def centered_square(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the square with the box's center and its smaller side, which contains the retina and black corners.

    IDRiD's camera cuts the field of view at top and bottom: 2848 of its 3413 columns are used, 8 % less on each side.
    The square around the whole field of view would be one sixth black bars.
    """
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    return left, top, left + side, top + side


def preprocess(data: bytes, name: str, *, size: int, channels: int, crop: str) -> np.ndarray:
    """Convert a photograph to the square array that networks are trained on.

    Args:
      data: the file's bytes.
      name: the file's name, for messages.
      size: side of the result in pixels; above the photograph's own size, pixels are interpolated.
      channels: 3 (RGB) or 1 (grey: ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114 B).
      crop: "field_of_view": the square within the retina's box, see `centered_square`. "letterbox": the whole frame,
        with its aspect ratio and black bars (as in the thesis, section 3.2).

    Returns:
      uint8 [size, size, channels], 0..255.

    Raises:
      UserError: as `decode`; an unknown crop, or a size or number of channels out of range.
    """
    check_options(size, channels, crop)
    min_side = math.ceil(OVERSAMPLING * size)
    image = decode_image(data, name, min_side)
    if crop == "field_of_view":
        square = centered_square(field_of_view(image))
        if square[2] - square[0] < min_side <= min(image.size):
            image = decode_image(data, name)  # a small retina in a large frame needs the full size
            square = centered_square(field_of_view(image))
        image = image.convert("L") if channels == 1 else image
        is_reduced = square[2] - square[0] >= size
        filter = Image.Resampling.HAMMING if is_reduced else Image.Resampling.BICUBIC
        image = image.resize((size, size), filter, square)
    else:
        image = image.convert("L") if channels == 1 else image
        image = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def available_size(data: bytes, name: str, crop: str, enough: int) -> int:
    """Return the largest size, to about 1 %, at which `preprocess` only reduces this photograph.

    A caller that needs only to know whether it is at least `enough` gets some larger number sooner: the retina is not
    searched in a frame of four times that. Raises UserError as `decode` does.
    """
    image = decode_image(data, name, 256)
    with Image.open(io.BytesIO(data)) as full:  # reads only the header
        width, height = full.size
    if crop == "letterbox":
        return max(width, height)
    if min(width, height) >= 4 * enough:
        return min(width, height) // 4
    left, _, right, _ = centered_square(field_of_view(image))
    return round((right - left) * width / image.width)


def check_options(size: int, channels: int, crop: str) -> None:
    """Raise UserError, naming the option, if `preprocess` does not support it."""
    if crop not in CROPS:
        raise UserError(f"crop {crop!r} is unknown; choose one of {', '.join(CROPS)}")
    if channels not in (1, 3):
        raise UserError(f"channels {channels!r} is neither 1 (grey) nor 3 (RGB)")
    if not 1 <= size <= 8192:
        raise UserError(f"size {size!r} is not between 1 and 8192 pixels")
