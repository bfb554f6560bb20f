"""Conversions between uint8 images and the networks' float range, mirroring, image grids and encoding."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

GRID_GAP = 2  # pixels between the images of a grid


def to_float(images: jax.Array) -> jax.Array:
    """Convert uint8 images in [0, 255] to float32 in [-1, 1], the range of the generators' tanh."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: jax.Array) -> jax.Array:
    """Convert float images in [-1, 1] to uint8 with rounding; the inverse of `to_float`."""
    return jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)


def mirror_where(images: jax.Array, condition: jax.Array) -> jax.Array:
    """Mirror left to right the images [N, R, R, C] for which `condition`, bool [N], is true."""
    return jnp.where(condition[:, None, None, None], images[:, :, ::-1], images)


def image_grid(images: np.ndarray, columns: int) -> Image.Image:
    """Lay out uint8 images [N, R, R, C] row by row in a picture with `columns` images per row."""
    n, size, _, channels = images.shape
    rows = -(-n // columns)
    step = size + GRID_GAP
    canvas = np.full((rows * step - GRID_GAP, columns * step - GRID_GAP, channels), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        canvas[y * step : y * step + size, x * step : x * step + size] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def encode_image(image: np.ndarray, file_format: str, quality: int = 95) -> bytes:
    """Encode uint8 [H, W] or [H, W, C] as "png" or "jpg" bytes.

    JPEG color is not subsampled (4:4:4): at these sizes halved color would blur lesions.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    buffer = io.BytesIO()
    if file_format == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
