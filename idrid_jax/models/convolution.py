"""Strided convolution and its two adjoints, closed under differentiation.

`conv` is linear in the images and in the kernel, so its gradients are two more linear maps, and the gradients of those
are again the three: autodiff stays among them to any order (gradient penalties differentiate twice).

    conv(x, w)          images x kernel   -> features   what a convolution layer computes
    conv_input(g, w)    features x kernel -> images     what a transposed convolution layer computes
    conv_kernel(x, g)   images x features -> kernel     the kernel's gradient, for both layers

Written so, the kernel's gradient of a transposed convolution is an ordinary one. Left to autodiff it is a convolution
with dilated input *and* output gradient, which XLA on CPU lowers to a naive loop (400 to 8,000 ms where 8 to 160 are
enough). `conv_input` is the one map with a form of its own on CPU (see `_subpixel_input`). `bench.convolution` times
them.

Shapes: x [N, H, W, I], w [k, k, I, O], g [N, h, w, O] with h = (H + lo + hi - k) // stride + 1. Any floating dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[int, int]  # pixels added before and after, the same on both axes


def out_size(size: int, kernel: int, stride: int, padding: Padding) -> int:
    """Rows (or columns) that `conv` makes of `size` rows."""
    return (size + sum(padding) - kernel) // stride + 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlation of x [N, H, W, I] with w [k, k, I, O] -> [N, h, w, O]."""
    return _native(x, w, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_input(g: jax.Array, w: jax.Array, stride: int, padding: Padding, size: tuple[int, int]) -> jax.Array:
    """The adjoint of `conv` in x: g [N, h, w, O], w [k, k, I, O] -> [N, *size, I]."""
    native = functools.partial(_native_input, stride=stride, padding=padding, size=size)
    if stride == 1:
        return native(g, w)
    subpixel = functools.partial(_subpixel_input, stride=stride, padding=padding, size=size)
    return lax.platform_dependent(g, w, cpu=subpixel, default=native)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_kernel(x: jax.Array, g: jax.Array, stride: int, padding: Padding, kernel: int) -> jax.Array:
    """The adjoint of `conv` in w: x [N, H, W, I], g [N, h, w, O] -> [kernel, kernel, I, O]."""
    w = jax.ShapeDtypeStruct((kernel, kernel, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: _native(x, w, stride, padding), w)(g)[0]


def _conv_fwd(x, w, stride, padding):
    return conv(x, w, stride, padding), (x, w)


def _conv_bwd(stride, padding, residuals, g):
    x, w = residuals
    return conv_input(g, w, stride, padding, x.shape[1:3]), conv_kernel(x, g, stride, padding, w.shape[0])


def _conv_input_fwd(g, w, stride, padding, size):
    return conv_input(g, w, stride, padding, size), (g, w)


def _conv_input_bwd(stride, padding, size, residuals, x):
    g, w = residuals
    return conv(x, w, stride, padding), conv_kernel(x, g, stride, padding, w.shape[0])


def _conv_kernel_fwd(x, g, stride, padding, kernel):
    return conv_kernel(x, g, stride, padding, kernel), (x, g)


def _conv_kernel_bwd(stride, padding, kernel, residuals, w):
    x, g = residuals
    return conv_input(g, w, stride, padding, x.shape[1:3]), conv(x, w, stride, padding)


conv.defvjp(_conv_fwd, _conv_bwd)
conv_input.defvjp(_conv_input_fwd, _conv_input_bwd)
conv_kernel.defvjp(_conv_kernel_fwd, _conv_kernel_bwd)


def _native(x, w, stride, padding):
    return lax.conv_general_dilated(
        x, w, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _native_input(g, w, *, stride, padding, size):
    x = jax.ShapeDtypeStruct((g.shape[0], *size, w.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: _native(x, w, stride, padding), x)(g)[0]


def _subpixel_input(g, w, *, stride, padding, size):
    """`conv_input` without the zeros between rows that XLA:CPU would multiply by (sub-pixel convolution, Shi et al.
    2016, 3.2).

    The kernel, padded with zeros to a multiple of the stride, becomes m x m taps with s*s*I output channels at stride
    1; then the channels are spread over s x s pixels and the padding is cut off.
    """
    k, _, i, o = w.shape
    n, h, v, _ = g.shape
    m = -(-k // stride)
    w = jnp.pad(w, ((0, m * stride - k), (0, m * stride - k), (0, 0), (0, 0)))
    w = w.reshape(m, stride, m, stride, i, o).transpose(0, 2, 1, 3, 4, 5).reshape(m, m, stride * stride * i, o)
    rows, cols = h + m - 1, v + m - 1
    x = _native_input(g, w, stride=1, padding=(0, 0), size=(rows, cols))
    x = x.reshape(n, rows, cols, stride, stride, i).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, rows * stride, cols * stride, i)
    lo = padding[0]  # negative padding cuts; positive fills rows that no kernel position reached
    edges = [(-lo, full + lo - have * stride, 0) for full, have in zip(size, (rows, cols))]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
