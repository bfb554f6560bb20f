"""Downsampling of images: with the filter of `data.preprocess`, and by means over squares."""

import numpy as np
from PIL import Image

from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import resize

MIN_PIXELS = 28  # side of the smallest network's images


def downsample(images: np.ndarray, pixels: int) -> np.ndarray:
    """Return uint8 [N, pixels, pixels, C] of uint8 [N, R, R, C], C 1 or 3, by Pillow's Hamming filter.

    `data.preprocess` makes photographs small with the same filter, so that runs of two sizes can be compared at the
    smaller one. Means over squares would leave 0.7 dB more in the finest frequencies (128 pixels to 64).
    """
    return resize.pillow(np.asarray(images), pixels, Image.Resampling.HAMMING)


def block_means(images: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of [N, R, R, C] over squares of factor x factor pixels, float32 [N, R // factor, R // factor,
    C]. Rows and columns beyond the last whole square are cut off."""
    side = images.shape[1] // factor
    squares = images[:, : side * factor, : side * factor].reshape(len(images), side, factor, side, factor, -1)
    return squares.mean((2, 4), dtype=np.float32)


def check_pixels(pixels: int, size: int) -> None:
    """Raise UserError if images of `size` pixels a side cannot be compared at `pixels`."""
    if not MIN_PIXELS <= pixels < size:
        advice = f"choose {MIN_PIXELS} to {size - 1}" if size > MIN_PIXELS else "compare them at that size"
        raise UserError(f"images of {size} pixels a side cannot be compared at {pixels}: {advice}")
