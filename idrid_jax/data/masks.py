"""Lesion masks: IDRiD's TIFF files to bool arrays, and back to the same one-bit palette form."""

import io
import struct

import numpy as np
from PIL import Image

from idrid_jax.data.release_files import Source
from idrid_jax.errors import UserError


def read_mask(source: Source, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a lesion mask: bool [H, W], True where the file is not 0.

    IDRiD's masks are one-bit palette TIFFs with values {0, 1}; IDRiD_81_EX.tif is RGBA, with the mask in its red
    channel. Grey and one-bit files are read as well. `size` is (H, W) of the photograph; None skips the check.

    Raises UserError for a mask of another size, and for a file that is damaged or not an image.
    """
    with open_image(source.read(), source) as image:
        if size is not None:
            check_mask_size(source, image.size, (size[1], size[0]))
        try:
            pixels = np.asarray(image)
        except Exception as error:  # Pillow raises many types of errors on damaged files
            raise UserError(f"{source}: a damaged mask ({' '.join(str(error).split())}); get another copy") from error
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) > 0


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode bool [H, W] as IDRiD's masks are: an uncompressed one-bit TIFF with the palette (black, red).

    The bytes are assembled here (TIFF 6.0, section 5), because Pillow reads this form, as mode P with values {0, 1},
    but writes palettes only at eight bits per pixel.
    """
    height, width = mask.shape
    pixels = np.packbits(mask, axis=1).tobytes()
    short, long, num_fields = 3, 4, 10
    palette_at = 8 + 2 + num_fields * 12 + 4  # the palette follows the directory; the pixels follow the palette
    fields = (
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 1, 1),  # bits per sample
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 3),  # palette
        (273, long, 1, palette_at + 12),  # offset of the only strip
        (277, short, 1, 1),  # samples per pixel
        (278, long, 1, height),  # rows in the strip
        (279, long, 1, len(pixels)),
        (320, short, 6, palette_at),
    )
    directory = struct.pack("<H", num_fields) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<6H", 0, 65535, 0, 0, 0, 0) + pixels


def open_image(data: bytes, source: Source) -> Image.Image:
    """Open an image without decoding its pixels. Raises UserError if Pillow cannot read it or finds it too large."""
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UserError(f"{source}: too many pixels; a decompression bomb, or not a mask") from None
    except Exception:
        raise UserError(f"{source}: not an image ({len(data)} bytes); get another copy") from None


def check_mask_size(source: Source, found: tuple[int, int], photograph: tuple[int, int]) -> None:
    """Raise UserError unless a mask has the (width, height) of its photograph."""
    if found != photograph:
        raise UserError(
            f"{source}: a mask of {found[0]}x{found[1]} pixels for a photograph of {photograph[0]}x{photograph[1]}; "
            "give the mask and the photograph the same size"
        )
