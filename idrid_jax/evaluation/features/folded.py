"""Convolutional networks for inference, with each BatchNorm folded into the convolution before it."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")  # names of its parameters in PyTorch


@dataclass(frozen=True)
class FoldedNetwork:
    """The architecture of a network and the names of its parameters in a file of weights.

    Attributes:
      forward: (conv, x [N, input_size, input_size, 3]) -> any pytree. It builds the network from
        conv(name, x [N, H, W, I], out, kernel, stride=1, padding=0, depthwise=False) -> [N, h, w, out], a convolution
        with the BatchNorm that follows it. kernel and padding: pixels, one number or (rows, columns); padding may be
        "SAME", as TensorFlow defines it. depthwise: one filter per channel, out = I.
      input_size: side of the input in pixels.
      parameter_names: name of a convolution -> (name of its weight, prefix of its BatchNorm's parameters).
      epsilon: of BatchNorm.
    """

    forward: Callable
    input_size: int
    parameter_names: Callable[[str], tuple[str, str]]
    epsilon: float

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every parameter; kernels are [out, in, rows, columns], as in PyTorch."""
        shapes = {}
        for name, shape in self._kernel_shapes().items():
            weight, norm = self.parameter_names(name)
            shapes |= {weight: shape} | {f"{norm}.{part}": shape[:1] for part in BATCH_NORM}
        return shapes

    def convert(self, state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Fold the parameters of a file: {convolution: (kernel [rows, columns, in, out], bias [out])}, float32."""
        params = {}
        for name in self._kernel_shapes():
            weight, norm = self.parameter_names(name)
            scale, shift, mean, variance = (np.float64(state[f"{norm}.{part}"]) for part in BATCH_NORM)
            scale = scale / np.sqrt(variance + self.epsilon)
            kernel = np.float64(state[weight]).transpose(2, 3, 1, 0) * scale
            params[name] = kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)
        return params

    def apply(self, params: dict, x: jax.Array, forward: Callable | None = None):
        """Run the network, or a part of it, on x, float32 [N, H, W, C], with `params` from `convert`."""

        def conv(name, x, out, kernel, stride=1, padding=0, depthwise=False):
            weight, bias = params[name]
            return _convolve(x, weight, stride, padding, depthwise) + bias

        return (forward or self.forward)(conv, x)

    def _kernel_shapes(self):
        """Trace `forward` without parameters and record the shape of each kernel."""
        shapes = {}

        def conv(name, x, out, kernel, stride=1, padding=0, depthwise=False):
            inputs = 1 if depthwise else x.shape[-1]
            shapes[name] = (out, inputs, *_pair(kernel))
            return _convolve(x, jnp.zeros((*_pair(kernel), inputs, out)), stride, padding, depthwise)

        images = jax.ShapeDtypeStruct((1, self.input_size, self.input_size, 3), jnp.float32)
        jax.eval_shape(lambda x: self.forward(conv, x), images)
        return shapes


def max_pool(x: jax.Array, stride: int, padding: int = 0) -> jax.Array:
    """Return the maximum over 3x3 windows, [N, H, W, C] -> [N, h, w, C]; padding is never the maximum."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), _spatial(padding))


def mean_pool(x: jax.Array) -> jax.Array:
    """Return the mean over 3x3 windows with stride 1, [N, H, W, C] -> the same; padding is not counted."""
    return _sum_pool(x) / _sum_pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _sum_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), _spatial(1))


def _convolve(x, kernel, stride, padding, depthwise):
    if padding == "SAME":
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    else:
        pads = [(p, p) for p in _pair(padding)]
    if depthwise:
        return _depthwise(x, kernel, stride, pads)
    if kernel.shape[:2] == (1, 1) and stride == 1:  # the same, and its gradients are faster on a CPU
        return jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0], precision=lax.Precision.HIGHEST)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _depthwise(x, kernel, stride, pads):
    """Sum shifted copies of x: on a CPU, XLA's grouped convolution takes five times as long."""
    height, width = (1 + (x.shape[1 + i] + sum(pads[i]) - kernel.shape[i]) // stride for i in (0, 1))
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    total = 0
    for i, j in np.ndindex(*kernel.shape[:2]):
        rows = slice(i, i + (height - 1) * stride + 1, stride)
        columns = slice(j, j + (width - 1) * stride + 1, stride)
        total = total + x[:, rows, columns] * kernel[i, j, 0]
    return total


def _spatial(padding):
    return [(0, 0), (padding, padding), (padding, padding), (0, 0)]


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
