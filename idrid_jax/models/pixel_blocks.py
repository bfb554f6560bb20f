"""Convolutions with few channels on one side as ones over blocks of s x s pixels ("space to depth"), for NVIDIA GPUs.

A tensor core multiplies by many channels at once; three of them leave it idle. Over blocks there are s * s times as
many. On an H100 that halved the time of a whole step of dcgan128 in bfloat16 (`bench/README.md`).

Both functions are linear in x and in w, so their transposes are the adjoints.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 4  # side of the blocks of features that `few_features` computes at once


def strided(x: jax.Array, w: jax.Array, stride: int, before: int, out: tuple[int, int]) -> jax.Array:
    """A convolution of stride s as one of stride 1 over blocks of s x s pixels: x [N, H, W, I], w [k, k, I, O] ->
    [N, *out, O], with `before` pixels of padding above and to the left, and whatever `out` needs at the other edges.

    k x k taps become ceil(k / s) x ceil(k / s) over s * s * I channels, with zeros where the kernel ends.
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


def few_features(x: jax.Array, w: jax.Array, before: int, out: tuple[int, int]) -> jax.Array:
    """A convolution of stride 1 to few features O: x [N, H, W, I], w [k, k, I, O] -> [N, *out, O], padded likewise.

    `BLOCK` x `BLOCK` positions are computed as so many more features of a convolution of that stride, whose kernel
    holds w once for each position.
    """
    positions = [
        [jnp.pad(w, ((a, BLOCK - 1 - a), (b, BLOCK - 1 - b), (0, 0), (0, 0))) for b in range(BLOCK)]
        for a in range(BLOCK)
    ]
    w = jnp.stack([jnp.stack(row, axis=3) for row in positions], axis=3)  # [k + BLOCK - 1, same, I, BLOCK, BLOCK, O]
    blocks = tuple(-(-size // BLOCK) for size in out)
    y = strided(x, w.reshape(*w.shape[:3], -1), BLOCK, before, blocks)
    y = y.reshape(len(x), *blocks, BLOCK, BLOCK, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(len(x), blocks[0] * BLOCK, blocks[1] * BLOCK, -1)[:, : out[0], : out[1]]
