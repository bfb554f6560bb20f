"""A photograph's bytes -> a square uint8 array. Both ways in share this file, through `cache`.

Decisions, all part of `VERSION`:

- EXIF orientation is ignored: IDRiD's masks and coordinates count the pixels as they are stored.
- 16-bit grey is scaled by its full range (65535 -> 255, a division by 257), never by the brightest pixel: a dark
  photograph stays dark. Transparency is laid over black, which is what lies around a retina.
- Large JPEGs are decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled inverse DCT), always to at least twice the pixels that
  the result needs, then resized by Pillow's antialiased Lanczos filter, which keeps the contrast of microaneurysms
  (a few pixels wide) best and is what StyleGAN's dataset tool uses. Aliased filters change what a generator learns
  and what FID says (Parmar, Zhang, Zhu, "On Aliased Resizing", CVPR 2022).
"""

import io
import warnings

import numpy as np
from PIL import Image

from idrid_jax.errors import UserError

VERSION = 1  # raise it whenever the pixels change: it is part of the cache's key
CROPS = ("field_of_view", "letterbox")

MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of a GiB of RGB); IDRiD has 12 million
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # and no others: fewer parsers for bytes from anywhere
_OVERSAMPLING = 2  # decoded pixels per pixel of the result, at least

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
    # Pillow's parsers raise whatever damaged bytes lead them into (OSError, SyntaxError, struct.error, ...): all of it
    # means that the file is bad, so the two calls that parse catch everything.
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS} pixels; a decompression bomb, or not a photograph") from None
    except Exception:
        raise UserError(f"{name}: not a JPEG, PNG, TIFF or BMP image ({len(data)} bytes); replace the file") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS} pixels; "
                        "a decompression bomb, or not a photograph")
    if least is not None:
        image.draft(None, (least, least))  # of JPEG only; Pillow takes the smallest scale with both sides >= least
    try:
        image.load()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: damaged or cut short ({reason}); copy or download the file again") from None
    return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I", which older Pillow gives for 16-bit PNG
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: pixels from {values.min()} to {values.max()}; give an image of 8 or 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{name}: float pixels have no known range; give an image of 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert("RGB"))
