"""Strided convolutions of images over blocks of s x s pixels ("space to depth"), for NVIDIA GPUs.

A tensor core multiplies by many channels at once; three of them leave it idle. Over blocks there are s * s times as
many. On an H100 that halved the time of a whole step of dcgan128 in bfloat16 (`bench/README.md`).
"""

import jax
import jax.numpy as jnp
from jax import lax


def strided(x: jax.Array, w: jax.Array, stride: int, before: int, out: tuple[int, int]) -> jax.Array:
    """A convolution of stride s as one of stride 1 over blocks of s x s pixels: x [N, H, W, I], w [k, k, I, O] ->
    [N, *out, O], with `before` pixels of padding above and to the left, and whatever `out` needs at the other edges.

    k x k taps become ceil(k / s) x ceil(k / s) over s * s * I channels, with zeros where the kernel ends. Linear in x
    and in w, so that its transposes are the adjoints.
    """
    taps = -(-w.shape[0] // stride)
    edges = [(before, stride * (o + taps - 1) - size - before, 0) for o, size in zip(out, x.shape[1:3])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    n, height, width, channels = x.shape
    x = x.reshape(n, height // stride, stride, width // stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, height // stride, width // stride, stride * stride * channels)
    missing = taps * stride - w.shape[0]
    w = jnp.pad(w, ((0, missing), (0, missing), (0, 0), (0, 0)))
    w = w.reshape(taps, stride, taps, stride, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    w = w.reshape(taps, taps, stride * stride * channels, -1)
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
