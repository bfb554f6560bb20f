"""Winograd convolution (minimal filtering on tiles) for CPUs: fewer multiplications than a plain convolution.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"; matrices by the Toom-Cook method.

In one dimension, m features of r taps follow from a product of polynomials that is interpolated from n = m + r - 1
points:

    y = A^T [(G w) * (B^T x)]        x [n], w [r], y [m], A^T [m, n], G [n, r], B^T [n, n]

with n products instead of m * r; in two dimensions n^2 instead of m^2 r^2 (25 instead of 64 for m = 4, r = 2).
Transforms are applied to rows, then to columns; the sum over channels turns the products into n^2 matrix products
[tiles, K] @ [K, O]. A kernel with stride s is one of r = ceil(k / s) taps over blocks of s x s pixels, K = s * s * I
channels.

The three maps of `convolution` share three transformed spaces, by the transforms or their adjoints:

    conv          M = V U        images -> V, kernel -> U, M -> features
    conv_input    V = M U^T      features -> M (adjoint), kernel -> U, V -> images (adjoint)
    conv_kernel   U = V^T M      images -> V, features -> M (adjoint), U -> kernel (adjoint)

Rounding errors grow with n: in float32 results are within 2e-5 of the largest value (a plain sum 1e-6, TF32 5e-4).
bfloat16 images and kernels are transformed and multiplied in float32, since the errors in bfloat16 would be too large.
"""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from idrid_jax.models.convolution.blocking import map_parts, materialized, num_parts, sum_parts

# Small fractions of both signs keep the entries of the matrices, and so the rounding errors, small.
POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-2", "2", "-1/2")]
MAX_TAPS = 5


@functools.cache
def matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (A^T [m, n], G [n, r], B^T [n, n]) for m features of r taps: exact fractions rounded to float64.

    With the Vandermonde matrices E_k of the n - 1 points and infinity, A = E_m, G = E_r and B^T = E_n^-T; each row of
    B^T is scaled to whole numbers, and G by the inverse.
    """
    n = m + r - 1
    points = POINTS[: n - 1]

    def powers(k):
        return [[p**j for j in range(k)] for p in points] + [[Fraction(0)] * (k - 1) + [Fraction(1)]]

    b = _inverse([list(column) for column in zip(*powers(n))])
    scales = [math.lcm(*(value.denominator for value in row)) for row in b]
    b = [[value * scale for value in row] for row, scale in zip(b, scales)]
    g = [[value / scale for value in row] for row, scale in zip(powers(r), scales)]
    return np.array(powers(m), float).T, np.array(g, float), np.array(b, float)


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Invert a matrix by exact Gauss-Jordan elimination."""
    n = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next(j for j in range(i, n) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(n):
            if j != i and rows[j][i]:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i])]
    return [row[n:] for row in rows]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The transforms of one layer. Images are [N, H, W, I], features [N, h, w, O], the kernel [k, k, I, O].

    Attributes:
      kernel, stride, padding: of the layer.
      size, out: (H, W) of the images and (h, w) of the features.
      m: features of a tile per axis; at least r - 1, so that a tile overlaps only with the next one.
    """

    kernel: int
    stride: int
    padding: tuple[int, int]
    size: tuple[int, int]
    out: tuple[int, int]
    m: int = 4

    @property
    def r(self) -> int:
        return -(-self.kernel // self.stride)

    @property
    def n(self) -> int:
        return self.m + self.r - 1

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of tiles."""
        return tuple(-(-features // self.m) for features in self.out)

    def parts(self, batch: int, inputs: int, outputs: int) -> int:
        """Return the number of parts in which to process a batch."""
        rows, cols = self.grid
        values = self.n**2 * rows * cols * (self.stride**2 * inputs + outputs)
        return num_parts(batch, values * 4)

    # -- images <-> V [n, n, tiles, s*s*I]

    def from_images(self, x: jax.Array) -> jax.Array:
        _, _, b = matrices(self.m, self.r)
        m, n, (rows, cols) = self.m, self.n, self.grid

        def transform_rows(x):  # -> [n, N, rows, columns of blocks, s*s*I]
            return _transform(b, [x[:, a : a + m * (rows - 1) + 1 : m] for a in range(n)], axis=0)

        def transform_columns(x):  # -> [n, n, N, rows, cols, s*s*I]
            return _transform(b, [x[:, :, :, a : a + m * (cols - 1) + 1 : m] for a in range(n)], axis=0)

        v = materialized(transform_columns, materialized(transform_rows, materialized(self._blocks, x)))
        return v.reshape(n * n, -1, v.shape[-1])

    def to_images(self, v: jax.Array) -> jax.Array:
        _, _, b = matrices(self.m, self.r)
        v = v.reshape(self.n, self.n, -1, *self.grid, v.shape[-1])
        add_columns = lambda v: self._overlap(b, v, axis=3)
        add_rows = lambda v: self._overlap(b, v, axis=1)
        return self._pixels(materialized(add_rows, materialized(add_columns, v)))

    def _edges(self) -> list[tuple[int, int, int]]:
        """Return the padding (negative: cropping) with which the tiles cover the images, for `lax.pad`."""
        before = self.padding[0]
        covered = [self.stride * (self.m * tiles + self.r - 1) for tiles in self.grid]
        return [(0, 0, 0), *((before, full - size - before, 0) for full, size in zip(covered, self.size)), (0, 0, 0)]

    def _blocks(self, x):
        """Images -> [N, rows of blocks, columns of blocks, s*s*I]."""
        s, inputs = self.stride, x.shape[-1]
        x = _wide(x)
        x = lax.pad(x, jnp.zeros((), x.dtype), self._edges())
        n, rows, cols = x.shape[0], x.shape[1] // s, x.shape[2] // s
        return x.reshape(n, rows, s, cols, s, inputs).transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, cols, s * s * inputs)

    def _pixels(self, x):
        """The adjoint of `_blocks`."""
        s, (n, rows, cols, channels) = self.stride, x.shape
        x = x.reshape(n, rows, cols, s, s, channels // s**2).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, rows * s, cols * s, channels // s**2)
        return lax.pad(x, jnp.zeros((), x.dtype), [(-before, -after, 0) for before, after, _ in self._edges()])

    def _overlap(self, b, points, axis):
        """Transform points [n, ...] to blocks along `axis`: m per tile; r - 1 more are added to the next tile's."""
        m, over = self.m, self.r - 1
        own, beyond = (_transform(matrix.T, points, axis + 1) for matrix in (b[:, :m], b[:, m:]))
        beyond = _padded(beyond, axis + 1, 0, m - over)

        def flat(x):
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        return _padded(flat(own), axis, 0, over) + _padded(flat(beyond), axis, m, over - m)

    # -- features <-> M [n, n, tiles, O]

    def from_features(self, g: jax.Array) -> jax.Array:
        a, _, _ = matrices(self.m, self.r)
        m, n, (rows, cols), outputs = self.m, self.n, self.grid, g.shape[-1]

        def transform_rows(g):  # -> [n, N, rows, cols, m, O]
            g = _wide(g)
            for axis, tiles in ((1, rows), (2, cols)):
                g = _padded(g, axis, 0, tiles * m - g.shape[axis])
            g = g.reshape(-1, rows, m, cols, m, outputs)
            return _transform(a.T, [g[:, :, p] for p in range(m)], axis=0)

        def transform_columns(g):  # -> [n, n, N, rows, cols, O]
            return _transform(a.T, [g[:, :, :, :, p] for p in range(m)], axis=0)

        g = materialized(transform_columns, materialized(transform_rows, g))
        return g.reshape(n * n, -1, outputs)

    def to_features(self, y: jax.Array) -> jax.Array:
        a, _, _ = matrices(self.m, self.r)
        m, n, (rows, cols), (h, w), outputs = self.m, self.n, self.grid, self.out, y.shape[-1]
        y = y.reshape(n, n, -1, rows, cols, outputs)
        sum_columns = lambda y: _transform(a, y, axis=4)  # over j: -> [n, N, rows, cols, m, O]
        sum_rows = lambda y: _transform(a, y, axis=2)  # -> [N, rows, m, cols, m, O]
        y = materialized(sum_rows, materialized(sum_columns, y))
        return y.reshape(-1, rows * m, cols * m, outputs)[:, :h, :w]

    # -- kernel <-> U [n, n, s*s*I, O]

    def from_kernel(self, w: jax.Array) -> jax.Array:
        _, g, _ = matrices(self.m, self.r)
        s, r, n, (inputs, outputs) = self.stride, self.r, self.n, w.shape[2:]

        def transform_rows(w):  # -> [n, s, r, s, I, O]
            for axis in (0, 1):
                w = _padded(w, axis, 0, r * s - self.kernel)
            w = w.reshape(r, s, r, s, inputs, outputs)
            return _transform(g, list(w), axis=0)

        def transform_columns(w):  # -> [n, n, s, s, I, O]
            return _transform(g, [w[:, :, q] for q in range(r)], axis=0)

        return materialized(transform_columns, materialized(transform_rows, w)).reshape(n * n, -1, outputs)

    def to_kernel(self, u: jax.Array, inputs: int) -> jax.Array:
        _, g, _ = matrices(self.m, self.r)
        s, r, n, outputs = self.stride, self.r, self.n, u.shape[-1]
        u = u.reshape(n, n, s, s, inputs, outputs)
        sum_columns = lambda u: _transform(g.T, u, axis=2)  # over j: -> [n, s, r, s, I, O]
        sum_rows = lambda u: _transform(g.T, u, axis=0)  # -> [r, s, r, s, I, O]
        w = materialized(sum_rows, materialized(sum_columns, u))
        return w.reshape(r * s, r * s, inputs, outputs)[: self.kernel, : self.kernel]


def tiles(kernel: int, stride: int, padding: tuple[int, int], size, out) -> Tiles | None:
    """Return the tiles, 4 x 4 features each, of a layer; None if Winograd convolution would not be faster."""
    if not 2 <= -(-kernel // stride) <= MAX_TAPS or min(out) < 2:
        return None
    return Tiles(kernel, stride, padding, size, out)


def conv(t: Tiles, x: jax.Array, w: jax.Array) -> jax.Array:
    """See `convolution.conv`."""
    u = t.from_kernel(_wide(w))
    features = lambda x: t.to_features(_product(t.from_images(x), u, 2, 1)).astype(x.dtype)
    return map_parts(features, x, t.parts(x.shape[0], *w.shape[2:]))


def conv_input(t: Tiles, g: jax.Array, w: jax.Array) -> jax.Array:
    """See `convolution.conv_input`."""
    u = t.from_kernel(_wide(w))
    images = lambda g: t.to_images(_product(t.from_features(g), u, 2, 2)).astype(g.dtype)
    return map_parts(images, g, t.parts(g.shape[0], *w.shape[2:]))


def conv_kernel(t: Tiles, x: jax.Array, g: jax.Array) -> jax.Array:
    """See `convolution.conv_kernel`."""
    inputs, outputs = x.shape[-1], g.shape[-1]
    product = lambda x, g: _product(t.from_images(x), t.from_features(g), 1, 1)
    u = sum_parts(product, (x, g), t.parts(x.shape[0], inputs, outputs))
    return t.to_kernel(u, inputs).astype(x.dtype)


def _product(a, b, left: int, right: int):
    """Compute n * n matrix products that sum over axis `left` of a and `right` of b."""
    return lax.dot_general(a, b, (((left,), (right,)), ((0,), (0,))))


def _wide(x):
    """Convert bfloat16 to float32; other dtypes are unchanged."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _padded(x, axis: int, before: int, after: int):
    edges = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _transform(matrix, parts, axis: int):
    """Multiply matrix [p, q] by q arrays: one array with a new axis of size p.

    It compiles to a single loop over the result; a stack of p sums would be p loops.
    """
    parts = list(parts)
    shape = [1] * (parts[0].ndim + 1)
    shape[axis] = matrix.shape[0]
    terms = [
        jnp.expand_dims(part, axis) * jnp.asarray(column, part.dtype).reshape(shape)
        for column, part in zip(matrix.T, parts, strict=True)
    ]
    return functools.reduce(jnp.add, terms)
