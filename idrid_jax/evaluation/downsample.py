"""Images made smaller, so that runs of two sizes can be measured at one."""

import numpy as np
from PIL import Image

from idrid_jax.errors import UserError

LEAST = 28  # pixels a side, the smallest network's


def check_pixels(pixels: int, size: int) -> None:
    """Raises UserError where images of `size` pixels a side are not to be compared at so many."""
    if not LEAST <= pixels < size:
        way = f"give {LEAST} to {size - 1}, or leave it out" if size > LEAST else "none are smaller, leave it out"
        raise UserError(f"--pixels {pixels}: the images are of {size} a side; {way}")


def smaller(images: np.ndarray, pixels: int) -> np.ndarray:
    """uint8 [N, R, R, C], C 1 or 3 -> [N, pixels, pixels, C], by the filter that photographs are made small with
    (`data.preprocess`): means of squares would leave 0.7 dB more in the finest frequencies (128 pixels to 64)."""
    made = [
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).resize(
            (pixels, pixels), Image.Resampling.HAMMING
        )
        for image in np.asarray(images)
    ]
    return np.stack([np.asarray(image) for image in made]).reshape(len(images), pixels, pixels, -1)
