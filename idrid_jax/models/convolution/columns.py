"""Convolutions with few channels on one side, or a kernel that covers the image, as one matrix product, for CPUs.

XLA's own loop is fast for layers with many channels on both sides. With few image channels, the k x k pixels at each
position become a row of a matrix (im2col, Chellapilla et al. 2006). With few feature channels, each pixel is multiplied
by all k x k taps and the products are then shifted and summed (kn2row, Vasudevan et al. 2017).

Shapes as in `convolution`: x [N, H, W, I], w [k, k, I, O], g [N, h, w, O].
"""

import jax.numpy as jnp
from jax import lax

from idrid_jax.models.convolution.blocking import map_parts, materialized, num_parts, sum_parts


def _product(a, b, left: int, right: int):
    """Sum over axis `left` of a and `right` of b, in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((left,), (right,)), ((), ())), preferred_element_type=wide)


def _shifted(array, axis: int, by: int, size: int):
    """Return `size` entries along `axis`: entry i is entry i + `by` of the array, 0 outside."""
    edges = [(0, 0, 0)] * array.ndim
    edges[axis] = (-by, size + by - array.shape[axis], 0)
    return lax.pad(array, jnp.zeros((), array.dtype), edges)


class Im2col:
    """Maps for few image channels. A matrix row has r * r blocks of s * s pixels, r = ceil(k / s)."""

    def __init__(self, kernel, stride, padding, size, out):
        self.k, self.s, self.r, self.size, self.out = kernel, stride, -(-kernel // stride), size, out
        before, covered = padding[0], [stride * (features + self.r - 1) for features in out]
        self.edges = [(0, 0, 0), *((before, full - h - before, 0) for full, h in zip(covered, size)), (0, 0, 0)]

    def conv(self, x, w):
        y = _product(self._rows(x), self._matrix(w), 1, 0)
        return y.reshape(x.shape[0], *self.out, w.shape[-1]).astype(x.dtype)

    def conv_input(self, g, w):
        s, r, (h, v), inputs = self.s, self.r, self.out, w.shape[2]
        rows = _product(g.reshape(-1, g.shape[-1]), self._matrix(w), 1, 1).reshape(-1, h, v, r, r * s * s * inputs)

        def add_rows(rows):
            return sum(_shifted(rows[:, :, :, i], 1, -i, h + r - 1) for i in range(r))

        def add_columns(rows):
            rows = rows.reshape(-1, h + r - 1, v, r, s * s * inputs)
            return sum(_shifted(rows[:, :, :, j], 2, -j, v + r - 1) for j in range(r))

        x = materialized(add_columns, materialized(add_rows, rows))
        x = x.reshape(-1, h + r - 1, v + r - 1, s, s, inputs).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, (h + r - 1) * s, (v + r - 1) * s, inputs)
        cut = [(-before, -after, 0) for before, after, _ in self.edges]
        return lax.pad(x, jnp.zeros((), x.dtype), cut).astype(g.dtype)

    def conv_kernel(self, x, g):
        r, s, inputs, outputs = self.r, self.s, x.shape[-1], g.shape[-1]
        w = _product(self._rows(x), g.reshape(-1, outputs), 0, 0)
        w = w.reshape(r, r, s, s, inputs, outputs).transpose(0, 2, 1, 3, 4, 5)
        return w.reshape(r * s, r * s, inputs, outputs)[: self.k, : self.k].astype(x.dtype)

    def _rows(self, x):
        """Return the im2col matrix [N*h*w, r*r*s*s*I] of images."""
        s, r, (h, v), inputs = self.s, self.r, self.out, x.shape[-1]

        def blocks(x):
            x = lax.pad(x, jnp.zeros((), x.dtype), self.edges)
            x = x.reshape(-1, h + r - 1, s, v + r - 1, s, inputs).transpose(0, 1, 3, 2, 4, 5)
            return x.reshape(-1, h + r - 1, v + r - 1, s * s * inputs)

        def columns(x):
            return jnp.concatenate([x[:, :, j : j + v] for j in range(r)], -1)

        def rows(x):
            return jnp.concatenate([x[:, i : i + h] for i in range(r)], -1)

        x = materialized(rows, materialized(columns, materialized(blocks, x)))
        return x.reshape(-1, x.shape[-1])

    def _matrix(self, w):
        r, s, (inputs, outputs), more = self.r, self.s, w.shape[2:], self.r * self.s - self.k
        w = jnp.pad(w, ((0, more), (0, more), (0, 0), (0, 0))).reshape(r, s, r, s, inputs, outputs)
        return w.transpose(0, 2, 1, 3, 4, 5).reshape(r * r * s * s * inputs, outputs)


class Kn2row:
    """Maps for few feature channels and stride 1, by the products of each pixel and all taps, [N*H*W, k*k*O]."""

    def __init__(self, kernel, padding, size, out):
        self.k, self.before, self.size, self.out = kernel, padding[0], size, out

    def conv(self, x, w):
        matrix, (height, width), (h, v), k = self._matrix(w), self.size, self.out, self.k

        def add_rows(products):
            return sum(_shifted(products[:, :, :, a], 1, a - self.before, h) for a in range(k))

        def add_columns(rows):
            return sum(_shifted(rows[:, :, :, b], 2, b - self.before, v) for b in range(k))

        def features(x):
            products = _product(x.reshape(-1, x.shape[-1]), matrix, 1, 0)
            products = products.reshape(-1, height, width, k, matrix.shape[1] // k)
            rows = materialized(add_rows, products).reshape(-1, h, width, k, w.shape[-1])
            return materialized(add_columns, rows).astype(x.dtype)

        return map_parts(features, x, self._parts(x.shape[0], w.shape[-1]))

    def conv_input(self, g, w):
        matrix = self._matrix(w)

        def images(g):
            return _product(self._rows(g), matrix, 1, 1).reshape(-1, *self.size, w.shape[2]).astype(g.dtype)

        return map_parts(images, g, self._parts(g.shape[0], w.shape[-1]))

    def conv_kernel(self, x, g):
        def product(x, g):
            return _product(x.reshape(-1, x.shape[-1]), self._rows(g), 0, 0)

        w = sum_parts(product, (x, g), self._parts(x.shape[0], g.shape[-1]))
        return w.reshape(-1, self.k, self.k, g.shape[-1]).transpose(1, 2, 0, 3).astype(x.dtype)

    def _parts(self, batch, outputs):
        return num_parts(batch, self.size[0] * self.size[1] * self.k**2 * outputs * 4)

    def _rows(self, g):
        """Return the feature to which each tap of each pixel contributes: [N*H*W, k*k*O]."""
        k, (height, width) = self.k, self.size

        def columns(g):
            return jnp.concatenate([_shifted(g, 2, self.before - b, width) for b in range(k)], -1)

        def rows(g):
            return jnp.stack([_shifted(g, 1, self.before - a, height) for a in range(k)], 3)

        g = materialized(rows, materialized(columns, g))
        return g.reshape(-1, k * g.shape[-1])

    def _matrix(self, w):
        return w.transpose(2, 0, 1, 3).reshape(w.shape[2], -1)


def dense_conv(x, w):
    """See `convolution.conv`; for a kernel that covers the image, without padding."""
    y = _product(x.reshape(x.shape[0], -1), w.reshape(-1, w.shape[-1]), 1, 0)
    return y.reshape(-1, 1, 1, w.shape[-1]).astype(x.dtype)


def dense_conv_input(g, w):
    """See `convolution.conv_input`; as `dense_conv`."""
    x = _product(g.reshape(g.shape[0], -1), w.reshape(-1, w.shape[-1]), 1, 1)
    return x.reshape(-1, *w.shape[:3]).astype(g.dtype)


def dense_conv_kernel(x, g):
    """See `convolution.conv_kernel`; as `dense_conv`."""
    w = _product(x.reshape(x.shape[0], -1), g.reshape(g.shape[0], -1), 0, 0)
    return w.reshape(*x.shape[1:], g.shape[-1]).astype(x.dtype)
