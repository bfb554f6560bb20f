"""Many images as one picture, for people to look at."""

import numpy as np
from PIL import Image

GAP = 2  # pixels between the images of a grid


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """uint8 [N, R, R, C] -> a picture with `columns` images a row, row by row."""
    n, size, _, channels = images.shape
    rows = -(-n // columns)
    step = size + GAP
    canvas = np.full((rows * step - GAP, columns * step - GAP, channels), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        canvas[y * step : y * step + size, x * step : x * step + size] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
