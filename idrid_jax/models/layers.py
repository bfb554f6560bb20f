"""The layers that the networks are made of: convolutions over `models.convolution`, and norms as the peers set them."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idrid_jax.models import convolution
from idrid_jax.models.initializers import Initializer, normal

Padding = convolution.Padding

NUM_GRADES = 5
MIN_ROWS_PER_DEVICE = 4  # of a layer on each device
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def shard_rows(mesh: Mesh) -> Iterator[None]:
    """Within, features [N, H, W, C] are split over the axes "data" and "rows" of `mesh` before and after convolutions.

    Where "rows" does not divide H, or leaves fewer than `MIN_ROWS_PER_DEVICE` a device, they are whole: XLA (jaxlib 0.10.2)
    computes wrong BatchNorm means of uneven parts, and wrong gradients where a kernel reaches past the next device.
    Convolutions are lax's own: of these the compiler knows how many rows of its neighbours a device needs.
    """
    token = _mesh.set(mesh)
    try:
        with convolution.lowering("native"):
            yield
    finally:
        _mesh.reset(token)


def _split(x: jax.Array) -> jax.Array:
    mesh = _mesh.get()
    if mesh is None:
        return x
    each, over = divmod(x.shape[1], mesh.shape["rows"])
    rows = "rows" if not over and each >= MIN_ROWS_PER_DEVICE else None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", rows)))


def output_tanh(image: jax.Array) -> jax.Array:
    """tanh, in float32 at least: in bfloat16 it has no slope at all beyond 3.5, and a generator that is there stays."""
    return jnp.tanh(image.astype(jnp.promote_types(image.dtype, jnp.float32)))


class GradeEmbedding(nnx.Embed):
    """Grades int32 [B] -> [B, features], or shares of the five, float32 [B, 5] -> the embeddings' weighted sum."""

    def __init__(self, features: int, *, init: Initializer = normal(1.0), dtype, rngs: nnx.Rngs):
        super().__init__(NUM_GRADES, features, embedding_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, grades: jax.Array) -> jax.Array:
        if jnp.issubdtype(grades.dtype, jnp.integer):
            return super().__call__(grades)
        return grades.astype(self.dtype) @ self.embedding[...].astype(self.dtype)


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
        x, kernel = _split(x.astype(self.dtype)), self.kernel[...].astype(self.dtype)
        y = _split(convolution.conv(x, kernel, self.stride, self.padding))
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
        x, kernel = _split(x.astype(self.dtype)), self.kernel[...].astype(self.dtype)
        height, width = ((size - 1) * self.stride + kernel.shape[0] - sum(self.padding) for size in x.shape[1:3])
        y = _split(convolution.conv_input(x, kernel, self.stride, self.padding, (height, width)))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def keras_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm as tf.keras sets it: epsilon 1e-3, momentum 0.99. Statistics stay in float32."""
    return nnx.BatchNorm(features, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)


def torch_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm as PyTorch sets it: epsilon 1e-5, momentum 0.9 in Flax's sense, scales N(1, 0.02).

    PyTorch's running variance is the unbiased one; ours is the biased, as Keras's and Flax's: N/(N-1) apart.
    """
    return nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=normal(0.02, mean=1.0), rngs=rngs
    )
