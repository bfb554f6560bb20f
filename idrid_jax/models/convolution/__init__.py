"""Strided convolution and its two adjoints, closed under differentiation, lowered for the platform it runs on.

`conv` is linear in the images and in the kernel, so its gradients are two more linear maps, and the gradients of those
are again the three: autodiff stays among them to any order (gradient penalties differentiate twice).

    conv(x, w)          images x kernel   -> features   what a convolution layer computes
    conv_input(g, w)    features x kernel -> images     what a transposed convolution layer computes
    conv_kernel(x, g)   images x features -> kernel     the kernel's gradient, for both layers

On TPUs each is one `lax.conv_general_dilated` or its transpose. On NVIDIA GPUs too, but for strided layers of images,
which go over `pixel_blocks`. XLA on CPU is slow at most of these shapes, so there each layer takes what was measured to
be fastest (`bench/README.md`): `winograd`, `columns`, or XLA's own.

Shapes: x [N, H, W, I], w [k, k, I, O], g [N, h, w, O] with h = (H + lo + hi - k) // stride + 1. Any floating dtype.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable

import jax
from jax import lax

from idrid_jax.models.convolution import columns, pixel_blocks, winograd

Padding = tuple[int, int]  # pixels added before and after, the same on both axes
Size = tuple[int, int]
Maps = tuple[Callable | None, Callable | None, Callable | None]  # conv, conv_input, conv_kernel
NATIVE: Maps = (None, None, None)

_lowering = contextvars.ContextVar("lowering", default="platform")


@contextlib.contextmanager
def lowering(name: str):
    """Within, what is traced is lowered as "native" (`lax` alone, everywhere) or as "platform" says (the default)."""
    if name not in ("native", "platform"):
        raise ValueError(f"lowering {name!r}: native or platform")
    token = _lowering.set(name)
    try:
        yield
    finally:
        _lowering.reset(token)


def out_size(size: int, kernel: int, stride: int, padding: Padding) -> int:
    """Rows (or columns) that `conv` makes of `size` rows."""
    return (size + sum(padding) - kernel) // stride + 1


def conv(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlation of x [N, H, W, I] with w [k, k, I, O] -> [N, h, w, O]."""
    return _conv(x, w, Layer(w.shape[0], stride, padding, x.shape[1:3], _lowering.get()))


def conv_input(g: jax.Array, w: jax.Array, stride: int, padding: Padding, size: Size) -> jax.Array:
    """The adjoint of `conv` in x: g [N, h, w, O], w [k, k, I, O] -> [N, *size, I]."""
    return _conv_input(g, w, Layer(w.shape[0], stride, padding, size, _lowering.get()))


def conv_kernel(x: jax.Array, g: jax.Array, stride: int, padding: Padding, kernel: int) -> jax.Array:
    """The adjoint of `conv` in w: x [N, H, W, I], g [N, h, w, O] -> [kernel, kernel, I, O]."""
    return _conv_kernel(x, g, Layer(kernel, stride, padding, x.shape[1:3], _lowering.get()))


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is static of a convolution: kernel side, stride, padding, the images' (H, W), and the lowering."""

    kernel: int
    stride: int
    padding: Padding
    size: Size
    lowering: str

    @property
    def out(self) -> Size:
        return tuple(out_size(size, self.kernel, self.stride, self.padding) for size in self.size)

    @property
    def dense(self) -> bool:
        """The kernel covers the image: one position, and the convolution is a matrix product."""
        return self.out == (1, 1) and self.size == (self.kernel,) * 2 and self.padding == (0, 0)

    def native(self) -> Maps:
        return self._with_adjoints(
            lambda x, w: lax.conv_general_dilated(
                x, w, (self.stride,) * 2, (self.padding,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    def _with_adjoints(self, conv: Callable) -> Maps:
        def conv_input(g, w):
            x = jax.ShapeDtypeStruct((g.shape[0], *self.size, w.shape[2]), g.dtype)
            return jax.linear_transpose(lambda x: conv(x, w), x)(g)[0]

        def conv_kernel(x, g):
            w = jax.ShapeDtypeStruct((self.kernel, self.kernel, x.shape[-1], g.shape[-1]), x.dtype)
            return jax.linear_transpose(lambda w: conv(x, w), w)(g)[0]

        return conv, conv_input, conv_kernel

    def cuda(self, inputs: int) -> Maps:
        """The three maps for images of so many channels on an NVIDIA GPU; None: the native one."""
        out, before = self.out, self.padding[0]
        if min(out) < 1 or self.kernel == 1:
            return NATIVE
        if self.dense:
            return columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel
        if inputs <= 4 and self.stride > 1:
            return self._with_adjoints(lambda x, w: pixel_blocks.strided(x, w, self.stride, before, out))
        return NATIVE

    def cpu(self, inputs: int, outputs: int) -> Maps:
        """The three maps for so many channels on a CPU; None: the native one."""
        out = self.out
        if min(out) < 1 or self.kernel == 1:
            return NATIVE
        if self.dense:
            return columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel
        if inputs <= 4 and self.kernel <= 5:
            thin = columns.ThinImages(self.kernel, self.stride, self.padding, self.size, out)
            return thin.conv, thin.conv_input, thin.conv_kernel
        if outputs <= 4 and self.stride == 1:
            thin = columns.ThinFeatures(self.kernel, self.padding, self.size, out)
            return thin.conv, thin.conv_input, thin.conv_kernel
        tiles = winograd.tiles(self.kernel, self.stride, self.padding, self.size, out)
        if tiles is None:
            return NATIVE
        if self.kernel == 3 and self.stride == 2:  # 9 of 16 taps are there: only the slowest of XLA's own is beaten
            return None, None, functools.partial(winograd.conv_kernel, tiles)
        return tuple(functools.partial(f, tiles) for f in (winograd.conv, winograd.conv_input, winograd.conv_kernel))

    def run(self, which: int, a, b, inputs: int, outputs: int):
        """Map `which` of the three, by the platform that the program is compiled for."""
        native = self.native()[which]
        if self.lowering == "native":
            return native(a, b)
        special = {"cpu": self.cpu(inputs, outputs)[which], "cuda": self.cuda(inputs)[which]}
        special = {platform: function for platform, function in special.items() if function is not None}
        return lax.platform_dependent(a, b, default=native, **special) if special else native(a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, w, layer: Layer):
    return layer.run(0, x, w, *w.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_input(g, w, layer: Layer):
    return layer.run(1, g, w, *w.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_kernel(x, g, layer: Layer):
    return layer.run(2, x, g, x.shape[-1], g.shape[-1])


def _conv_fwd(x, w, layer):
    return _conv(x, w, layer), (x, w)


def _conv_bwd(layer, residuals, g):
    x, w = residuals
    return _conv_input(g, w, layer), _conv_kernel(x, g, layer)


def _conv_input_fwd(g, w, layer):
    return _conv_input(g, w, layer), (g, w)


def _conv_input_bwd(layer, residuals, x):
    g, w = residuals
    return _conv(x, w, layer), _conv_kernel(x, g, layer)


def _conv_kernel_fwd(x, g, layer):
    return _conv_kernel(x, g, layer), (x, g)


def _conv_kernel_bwd(layer, residuals, w):
    x, g = residuals
    return _conv_input(g, w, layer), _conv(x, w, layer)


_conv.defvjp(_conv_fwd, _conv_bwd)
_conv_input.defvjp(_conv_input_fwd, _conv_input_bwd)
_conv_kernel.defvjp(_conv_kernel_fwd, _conv_kernel_bwd)
