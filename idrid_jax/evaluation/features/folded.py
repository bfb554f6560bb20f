"""Convolutional networks whose BatchNorm is folded into the convolution before it, as it can be once it is trained."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Convolutional:
    """A network, and where a file keeps its parameters.

    Attributes:
      network: (conv, x [N, size, size, 3]) -> anything, built from conv(name, x, out, kernel, stride=1, padding=0,
        depthwise=False): [N, H, W, I] -> [N, h, w, out], convolution and BatchNorm; kernel and padding in pixels, one
        number or (rows, columns); padding "SAME" as TensorFlow has it; depthwise: each channel by itself, out = I.
      names: of a convolution -> its weight, and the prefix of its BatchNorm, in the file.
      epsilon: of BatchNorm.
    """

    network: Callable
    size: int
    names: Callable[[str], tuple[str, str]]
    epsilon: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of all that is taken from a file; kernels [out, in, rows, columns] as PyTorch's."""
        kernels = {self.names(name): shape for name, shape in self._convolutions().items()}
        out = {weight: shape for (weight, _), shape in kernels.items()}
        return out | {f"{norm}.{part}": shape[:1] for (_, norm), shape in kernels.items() for part in STATISTICS}

    def parameters(self, state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{convolution: (kernel float32 [rows, columns, in, out], bias float32 [out])} of a file's `state`."""
        found = {}
        for name in self._convolutions():
            weight, norm = self.names(name)
            scale, shift, mean, variance = (np.float64(state[f"{norm}.{part}"]) for part in STATISTICS)
            scale = scale / np.sqrt(variance + self.epsilon)
            kernel = np.float64(state[weight]).transpose(2, 3, 1, 0) * scale
            found[name] = kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)
        return found

    def apply(self, params: dict, x: jax.Array):
        """What the network gives for x [N, size, size, 3]; params as `parameters` returns them."""

        def conv(name, x, out, kernel, stride=1, padding=0, depthwise=False):
            weight, bias = params[name]
            return _convolved(x, weight, stride, padding, depthwise) + bias

        return self.network(conv, x)

    def _convolutions(self):
        found = {}

        def conv(name, x, out, kernel, stride=1, padding=0, depthwise=False):
            read = 1 if depthwise else x.shape[-1]
            found[name] = (out, read, *_pair(kernel))
            return _convolved(x, jnp.zeros((*_pair(kernel), read, out)), stride, padding, depthwise)

        images = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
        jax.eval_shape(lambda x: self.network(conv, x), images)
        return found


def max_pool(x: jax.Array, stride: int, padding: int = 0) -> jax.Array:
    """The largest of 3x3 pixels, [N, H, W, C] -> [N, h, w, C]."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), _around(padding))


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean of 3x3 pixels, [N, H, W, C] -> the same; at the border, of those that are there."""
    total = lambda y: lax.reduce_window(y, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), _around(1))
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _convolved(x, kernel, stride, padding, depthwise):
    return (_depthwise if depthwise else _conv)(x, kernel, stride, padding)


def _depthwise(x, kernel, stride, padding):
    """A sum over the kernel's places: one loop on a CPU, where XLA's convolution by groups takes five times as long."""
    pads = _pads(x, kernel, stride, padding)
    height, width = (1 + (x.shape[1 + i] + sum(pads[i]) - kernel.shape[i]) // stride for i in (0, 1))
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    rows = lambda i: slice(i, i + (height - 1) * stride + 1, stride)
    columns = lambda j: slice(j, j + (width - 1) * stride + 1, stride)
    return sum(x[:, rows(i), columns(j)] * kernel[i, j, 0] for i, j in np.ndindex(*kernel.shape[:2]))


def _conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        _pads(x, kernel, stride, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _pads(x, kernel, stride, padding):
    if padding == "SAME":
        return lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    return [(p, p) for p in _pair(padding)]


def _around(padding):
    return [(0, 0), (padding, padding), (padding, padding), (0, 0)]


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
