"""The resizes that feature extractors were published with; another resize changes the features.

Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation", CVPR 2022.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def pillow(images: np.ndarray, size: int, filter: Image.Resampling) -> np.ndarray:
    """Resize uint8 images [N, H, W, C], C 1 or 3, to uint8 [N, size, size, C] by Pillow: antialiased."""
    grey = images.shape[-1] == 1
    resized = [Image.fromarray(x[..., 0] if grey else x).resize((size, size), filter) for x in images]
    return np.stack([np.asarray(x) for x in resized]).reshape(len(images), size, size, images.shape[-1])


def tf1_bilinear(images: jax.Array, size: int) -> jax.Array:
    """TensorFlow 1's `resize_bilinear` with align_corners=False, as in the graph of FID.

    float32 [N, H, W, C] -> float32 [N, size, size, C]. Output pixel i samples input position i * H / size (corners
    and not centers are aligned), without antialiasing. No library besides TensorFlow computes it.
    """
    return _tf1_linear(_tf1_linear(images, size, axis=2), size, axis=1)


def _tf1_linear(x, size, axis):
    length = x.shape[axis]
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, length - 1)
    fraction = (position - low).reshape([-1 if i == axis else 1 for i in range(4)])
    low, high = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
    return low + (high - low) * fraction


def torch_bicubic_weights(length: int, size: int, step: float) -> np.ndarray:
    """Matrix of PyTorch's bicubic `interpolate`: float64 [size, length]; a = -0.75, no antialiasing, border repeated.

    step: distance of two output pixels in input pixels.
    """
    position = (np.arange(size) + 0.5) * step - 0.5
    weights = np.zeros((size, length))
    for tap in range(-1, 3):
        pixel = np.floor(position) + tap
        np.add.at(weights, (np.arange(size), np.clip(pixel, 0, length - 1).astype(int)), _cubic(position - pixel))
    return weights


def _cubic(x, a=-0.75):
    """The convolution kernel of Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def imagenet_normalize(images: jax.Array) -> jax.Array:
    """Subtract ImageNet's mean and divide by its deviation: [N, H, W, C] in [0, 255], C 1 or 3 -> [N, H, W, 3]."""
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (images.astype(jnp.float32) / 255 - mean) / deviation
