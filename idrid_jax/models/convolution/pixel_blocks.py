"""Strided convolutions of images over blocks of s x s pixels (space-to-depth), for NVIDIA GPUs.

Tensor cores multiply many channels at once and are mostly idle with 3. Blocks have s * s times as many channels, which
halved the time of a whole training step of dcgan128 in bfloat16 on an H100 (`bench/README.md`).
"""

import jax
import jax.numpy as jnp
from jax import lax


def strided(x: jax.Array, w: jax.Array, stride: int, before: int, out: tuple[int, int]) -> jax.Array:
    """Compute a convolution of stride s as one of stride 1 over blocks of s x s pixels.

    The k x k taps become ceil(k / s) x ceil(k / s) taps over s * s * I channels, filled up with zeros. The function is
    linear in x and in w, so its transposes are the adjoints.

    Args:
      x: images [N, H, W, I].
      w: kernel [k, k, I, O].
      stride: s.
      before: padding above and to the left; the padding at the other edges follows from `out`.
      out: (h, w) of the result.

    Returns:
      Features [N, h, w, O].
    """
    taps = -(-w.shape[0] // stride)
    edges = [(before, stride * (o + taps - 1) - size - before, 0) for o, size in zip(out, x.shape[1:3])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    n, height, width, channels = x.shape
    x = x.reshape(n, height // stride, stride, width // stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, height // stride, width // stride, stride * stride * channels)
    added = taps * stride - w.shape[0]
    w = jnp.pad(w, ((0, added), (0, added), (0, 0), (0, 0)))
    w = w.reshape(taps, stride, taps, stride, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    w = w.reshape(taps, taps, stride * stride * channels, -1)
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
