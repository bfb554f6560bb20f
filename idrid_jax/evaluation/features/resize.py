"""The resizes that networks of features were published with, in JAX. Another resize is another feature: Parmar et al.,
"On aliased resizing and surprising subtleties in GAN evaluation", CVPR 2022."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def tf1_bilinear(images: jax.Array, size: int) -> jax.Array:
    """TensorFlow 1's `resize_bilinear` with align_corners=False, as the graph of FID has it.

    float32 [N, H, W, C] -> float32 [N, size, size, C] in the range of the images. Pixel i is taken from i * H / size,
    not from the pixels' centres, and nothing is smoothed before it is made smaller.
    """

    def along(x, axis):
        length = x.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = at.astype(np.int32)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        low, high = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        return low + (high - low) * share

    return along(along(images, 2), 1)


def pil(images: jax.Array, size: int, kernel: str) -> jax.Array:
    """Pillow's resize of 8-bit images, bit for bit: antialiased, rows first, each pass rounded to whole grey levels.

    float32 [N, H, W, C] of whole numbers in [0, 255] -> the same, [N, size, size, C]. kernel: "bilinear" (the triangle)
    or "bicubic" (Keys 1981, a = -0.5).
    """
    height, width = images.shape[1:3]
    x = _pass("oi,nhic->nhoc", pil_weights(width, size, kernel), images)
    return _pass("oi,niwc->nowc", pil_weights(height, size, kernel), x)


BITS, HALF = (
    22,
    11,
)  # of Pillow's fixed-point weights; of each of the two parts that float32 multiplies without rounding


def _pass(spec, weights, x):
    high = (weights + (1 << HALF - 1)) >> HALF
    low = weights - (high << HALF)
    product = lambda part: jnp.einsum(spec, part.astype(np.float32), x, precision=lax.Precision.HIGHEST)
    total = (product(high).astype(jnp.int32) << HALF) + product(low).astype(jnp.int32)
    return jnp.clip((total + (1 << BITS - 1)) >> BITS, 0, 255).astype(jnp.float32)


def pil_weights(length: int, size: int, kernel: str) -> np.ndarray:
    """int32 [size, length], in units of 2^-22: the share of each pixel in each new one; rows sum to about 2^22."""
    support, function = {"bilinear": (1, _triangle), "bicubic": (2, _keys)}[kernel]
    scale = length / size
    wide = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    pixel = np.arange(length)[None]
    within = (pixel >= np.floor(centre - support * wide + 0.5)) & (pixel < np.floor(centre + support * wide + 0.5))
    weights = np.where(within, function((pixel - centre + 0.5) / wide), 0)
    weights = weights / weights.sum(axis=1, keepdims=True) * (1 << BITS)
    return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)


def _triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def _keys(x, a=-0.5):
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def torch_bicubic_weights(length: int, size: int, step: float) -> np.ndarray:
    """float64 [size, length] of PyTorch's bicubic `interpolate` (a = -0.75, not antialiased, the border repeated).

    step: pixels of the old image between two of the new one.
    """
    at = (np.arange(size) + 0.5) * step - 0.5
    weights = np.zeros((size, length))
    for tap in range(-1, 3):
        pixel = np.floor(at) + tap
        np.add.at(weights, (np.arange(size), np.clip(pixel, 0, length - 1).astype(int)), _keys(at - pixel, a=-0.75))
    return weights


def imagenet_normal(images: jax.Array) -> jax.Array:
    """float32 [N, H, W, C] in [0, 255], C 1 (repeated) or 3 -> [N, H, W, 3]: ImageNet's mean taken off, over its
    deviation."""
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (images / 255 - mean) / deviation
