"""Lesion masks, both ways: IDRiD's TIFF files -> bool arrays, and back in the same one-bit palette form."""

import io
import struct

import numpy as np
from PIL import Image

from idrid_jax.data.source import Source
from idrid_jax.errors import UserError


def read_mask(source: Source, size: tuple[int, int] | None = None) -> np.ndarray:
    """A lesion's mask, bool [H, W]: True where the file is not 0.

    IDRiD's masks are one-bit palette TIFFs with values {0, 1}; IDRiD_81_EX.tif is RGBA, with the mask in its red
    channel. A grey or one-bit file does as well.

    Args:
      source: where the mask lies.
      size: (H, W) of its photograph, to be held against; None: not checked.

    Raises:
      UserError: a mask of another size; a file that is damaged or not an image.
    """
    with open_image(source.read(), source) as image:
        if size is not None:
            check_size(source, image.size, (size[1], size[0]))
        try:
            pixels = np.asarray(image)
        except Exception as error:  # Pillow raises whatever damaged bytes lead it into
            raise UserError(f"{source}: a damaged mask ({' '.join(str(error).split())}); get another copy") from error
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) > 0


def palette_tiff(mask: np.ndarray) -> bytes:
    """bool [H, W] -> an uncompressed TIFF of one bit a pixel with the palette (black, red), as IDRiD's masks are.

    Written by hand (TIFF 6.0, section 5): Pillow reads this form as mode P with values {0, 1}, but writes palettes only
    at eight bits a pixel.
    """
    height, width = mask.shape
    pixels = np.packbits(mask, axis=1).tobytes()
    short, long, entries = 3, 4, 10
    colours = 8 + 2 + entries * 12 + 4  # the colour map lies after the directory, and the pixels after it
    fields = (
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 1, 1),  # bits per sample
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 3),  # palette
        (273, long, 1, colours + 12),  # where the one strip begins
        (277, short, 1, 1),  # samples per pixel
        (278, long, 1, height),  # rows in the strip
        (279, long, 1, len(pixels)),
        (320, short, 6, colours),
    )
    directory = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<6H", 0, 65535, 0, 0, 0, 0) + pixels


def open_image(data: bytes, source: Source) -> Image.Image:
    """An image of which only the header was read. Raises UserError for what Pillow cannot read or finds too large."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UserError(f"{source}: too many pixels for a mask; a decompression bomb, or not a mask") from None
    except Exception:
        raise UserError(f"{source}: not an image ({len(data)} bytes); get another copy") from None


def check_size(source: Source, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises UserError unless a mask has its photograph's (width, height)."""
    if found != wanted:
        raise UserError(
            f"{source}: a mask of {found[0]}x{found[1]} pixels for a photograph of {wanted[0]}x{wanted[1]}; "
            "give the mask and the photograph the same size"
        )
