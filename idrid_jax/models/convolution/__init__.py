"""Strided convolution and its two adjoints, closed under differentiation, with a lowering for each platform.

`conv` is linear in the images and in the kernel, so its gradients are two further linear maps, and the gradients of
those are again among the three. Automatic differentiation of any order stays within them (gradient penalties
differentiate twice).

    conv(x, w)          images x kernel   -> features   forward pass of a convolution layer
    conv_input(g, w)    features x kernel -> images     forward pass of a transposed convolution layer
    conv_kernel(x, g)   images x features -> kernel     gradient of the kernel, for both layers

Shapes: x [N, H, W, I], w [k, k, I, O], g [N, h, w, O] with h = (H + before + after - k) // stride + 1, of any
floating dtype.

Lowerings: "native" is `lax.conv_general_dilated` and its transposes. "platform" (the default) is native on TPUs; on
NVIDIA GPUs native except for strided layers of images (`pixel_blocks`) and kernels that cover the image (`columns`);
on CPUs, where XLA is slow for most of these shapes, the one that was measured to be fastest: `winograd`, `columns` or
native. `models/README.md` says how to measure them.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
from jax import lax

from idrid_jax.models.convolution import columns, pixel_blocks, winograd

Padding = tuple[int, int]  # pixels before and after, the same on both axes
Size = tuple[int, int]
Maps = tuple[Callable | None, Callable | None, Callable | None]  # conv, conv_input, conv_kernel; None: native
NATIVE: Maps = (None, None, None)

_lowering = contextvars.ContextVar("lowering", default="platform")


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Use the lowering "native" or "platform" for programs that are traced in this context."""
    if name not in ("native", "platform"):
        raise ValueError(f"lowering {name!r}: choose native or platform")
    token = _lowering.set(name)
    try:
        yield
    finally:
        _lowering.reset(token)


def out_size(size: int, kernel: int, stride: int, padding: Padding) -> int:
    """Return the number of rows (or columns) of the features that `conv` computes from `size` rows of an image."""
    return (size + sum(padding) - kernel) // stride + 1


def conv(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Cross-correlate x [N, H, W, I] with w [k, k, I, O]: [N, h, w, O]."""
    return _conv(x, w, ConvSpec(w.shape[0], stride, padding, x.shape[1:3], _lowering.get()))


def conv_input(g: jax.Array, w: jax.Array, stride: int, padding: Padding, size: Size) -> jax.Array:
    """Apply the adjoint of `conv` in x to g [N, h, w, O] with w [k, k, I, O]: [N, *size, I]."""
    return _conv_input(g, w, ConvSpec(w.shape[0], stride, padding, size, _lowering.get()))


def conv_kernel(x: jax.Array, g: jax.Array, stride: int, padding: Padding, kernel: int) -> jax.Array:
    """Apply the adjoint of `conv` in w to g [N, h, w, O] with x [N, H, W, I]: [kernel, kernel, I, O]."""
    return _conv_kernel(x, g, ConvSpec(kernel, stride, padding, x.shape[1:3], _lowering.get()))


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """The static properties of a convolution.

    Attributes:
      kernel: side of the kernel.
      stride, padding: the same on both axes.
      size: (H, W) of the images.
      lowering: "native" or "platform".
    """

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
        """Whether the kernel covers the image, so that the convolution is a matrix product."""
        return self.out == (1, 1) and self.size == (self.kernel,) * 2 and self.padding == (0, 0)

    def apply(self, index: int, a: jax.Array, b: jax.Array, inputs: int, outputs: int) -> jax.Array:
        """Apply map `index` of `Maps` to (a, b) for so many channels, on the platform the program is compiled for."""
        native = self.native_maps()[index]
        if self.lowering == "native":
            return native(a, b)
        special = {"cpu": self.cpu_maps(inputs, outputs)[index], "cuda": self.cuda_maps(inputs)[index]}
        special = {platform: function for platform, function in special.items() if function is not None}
        return lax.platform_dependent(a, b, default=native, **special) if special else native(a, b)

    def native_maps(self) -> Maps:
        """Return the three maps in terms of `lax.conv_general_dilated`."""
        return self._with_adjoints(
            lambda x, w: lax.conv_general_dilated(
                x, w, (self.stride,) * 2, (self.padding,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    def cuda_maps(self, inputs: int) -> Maps:
        """Return the three maps for NVIDIA GPUs and images of `inputs` channels."""
        out, before = self.out, self.padding[0]
        if min(out) < 1 or self.kernel == 1:
            return NATIVE
        if self.dense:
            return columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel
        if inputs <= 4 and self.stride > 1:
            return self._with_adjoints(lambda x, w: pixel_blocks.strided(x, w, self.stride, before, out))
        return NATIVE

    def cpu_maps(self, inputs: int, outputs: int) -> Maps:
        """Return the three maps for CPUs, images of `inputs` channels and features of `outputs` channels."""
        out = self.out
        if min(out) < 1 or self.kernel == 1:
            return NATIVE
        if self.dense:
            return columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel
        if inputs <= 4 and self.kernel <= 5:
            im2col = columns.Im2col(self.kernel, self.stride, self.padding, self.size, out)
            return im2col.conv, im2col.conv_input, im2col.conv_kernel
        if outputs <= 4 and self.stride == 1:
            kn2row = columns.Kn2row(self.kernel, self.padding, self.size, out)
            return kn2row.conv, kn2row.conv_input, kn2row.conv_kernel
        tiles = winograd.tiles(self.kernel, self.stride, self.padding, self.size, out)
        if tiles is None:
            return NATIVE
        if self.kernel == 3 and self.stride == 2:  # blocks hold 9 of 16 taps: faster for the kernel's gradient alone
            return None, None, functools.partial(winograd.conv_kernel, tiles)
        return tuple(functools.partial(f, tiles) for f in (winograd.conv, winograd.conv_input, winograd.conv_kernel))

    def _with_adjoints(self, conv: Callable) -> Maps:
        def conv_input(g, w):
            x = jax.ShapeDtypeStruct((g.shape[0], *self.size, w.shape[2]), g.dtype)
            return jax.linear_transpose(lambda x: conv(x, w), x)(g)[0]

        def conv_kernel(x, g):
            w = jax.ShapeDtypeStruct((self.kernel, self.kernel, x.shape[-1], g.shape[-1]), x.dtype)
            return jax.linear_transpose(lambda w: conv(x, w), w)(g)[0]

        return conv, conv_input, conv_kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, w, spec: ConvSpec):
    return spec.apply(0, x, w, *w.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_input(g, w, spec: ConvSpec):
    return spec.apply(1, g, w, *w.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_kernel(x, g, spec: ConvSpec):
    return spec.apply(2, x, g, x.shape[-1], g.shape[-1])


def _conv_fwd(x, w, spec):
    return _conv(x, w, spec), (x, w)


def _conv_bwd(spec, residuals, g):
    x, w = residuals
    return _conv_input(g, w, spec), _conv_kernel(x, g, spec)


def _conv_input_fwd(g, w, spec):
    return _conv_input(g, w, spec), (g, w)


def _conv_input_bwd(spec, residuals, x):
    g, w = residuals
    return _conv(x, w, spec), _conv_kernel(x, g, spec)


def _conv_kernel_fwd(x, g, spec):
    return _conv_kernel(x, g, spec), (x, g)


def _conv_kernel_bwd(spec, residuals, w):
    x, g = residuals
    return _conv_input(g, w, spec), _conv(x, w, spec)


_conv.defvjp(_conv_fwd, _conv_bwd)
_conv_input.defvjp(_conv_input_fwd, _conv_input_bwd)
_conv_kernel.defvjp(_conv_kernel_fwd, _conv_kernel_bwd)
