"""The layers that the networks are made of: convolutions over `models.convolution`, and the peers' initialisers."""

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models import convolution

Initializer = jax.nn.initializers.Initializer
Padding = convolution.Padding

glorot_uniform = nnx.initializers.glorot_uniform()
normal_02 = nnx.initializers.normal(0.02)  # N(0, 0.02): Radford et al. 2016, section 4


def normal_scale(key, shape, dtype=jnp.float32, out_sharding=None):
    """BatchNorm scales N(1, 0.02), as the PyTorch DCGAN tutorial that the thesis follows."""
    del out_sharding
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class Conv(nnx.Module):
    """Convolution, images [N, H, W, I] -> [N, h, w, O]; padding in pixels (before, after), the same on both axes.

    Keras's SAME padding at stride 2 is (1, 2) for kernel 5 and (0, 1) for kernel 3; PyTorch's `padding=p` is (p, p).
    `kernel` is [k, k, I, O]; computed in `dtype`, parameters in float32.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: Padding,
        *,
        bias: bool,
        init: Initializer,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = convolution.conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.padding)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class ConvTranspose(nnx.Module):
    """Transposed convolution, the adjoint of `Conv` with the same padding: [N, h, w, I] -> [N, H, W, O].

    H = (h - 1) * stride + k - before - after: PyTorch's size with padding (p, p), and Keras's SAME (h * stride) with
    (1, 2) for kernel 5 and (1, 1) for kernel 4 at stride 2. `kernel` is [k, k, O, I], Keras's own order; PyTorch's is
    [I, O, k, k].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: Padding,
        *,
        bias: bool,
        init: Initializer,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, outputs, inputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        height, width = ((size - 1) * self.stride + kernel.shape[0] - sum(self.padding) for size in x.shape[1:3])
        y = convolution.conv_input(x.astype(self.dtype), kernel, self.stride, self.padding, (height, width))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def keras_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm as tf.keras sets it: epsilon 1e-3, momentum 0.99. Statistics stay in float32."""
    return nnx.BatchNorm(features, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)


def torch_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm as PyTorch sets it: epsilon 1e-5, momentum 0.9 in Flax's sense, scales N(1, 0.02).

    PyTorch's running variance is the unbiased one; ours is the biased, as Keras's and Flax's: N/(N-1) apart.
    """
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=normal_scale, rngs=rngs)
