"""Layers of the networks: convolutions, grade embeddings, output activation, and BatchNorm as in Keras and PyTorch."""

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
MIN_ROWS_PER_DEVICE = 4  # of a layer's features
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def shard_rows(mesh: Mesh) -> Iterator[None]:
    """Shard the features [N, H, W, C] of convolution layers over the mesh axes "data" and "rows" in this context.

    Rows are not sharded if "rows" does not divide H or a device would get fewer than `MIN_ROWS_PER_DEVICE`: XLA (jaxlib
    0.10.2) computes wrong BatchNorm means for uneven shards, and wrong gradients if a kernel reaches past the next
    device. Convolutions use the native lowering, for which the compiler knows which rows a device needs from its
    neighbors.
    """
    token = _mesh.set(mesh)
    try:
        with convolution.lowering("native"):
            yield
    finally:
        _mesh.reset(token)


def _shard(x: jax.Array) -> jax.Array:
    mesh = _mesh.get()
    if mesh is None:
        return x
    rows_per_device, remainder = divmod(x.shape[1], mesh.shape["rows"])
    rows = "rows" if not remainder and rows_per_device >= MIN_ROWS_PER_DEVICE else None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", rows)))


def output_tanh(image: jax.Array) -> jax.Array:
    """Apply tanh in float32 or wider: in bfloat16 its gradient is 0 beyond 3.5, and a saturated generator stops."""
    return jnp.tanh(image.astype(jnp.promote_types(image.dtype, jnp.float32)))


class GradeEmbedding(nnx.Embed):
    """Embedding of grades int32 [B], or weighted sum of the embeddings for weights float32 [B, 5]: [B, features]."""

    def __init__(self, features: int, *, init: Initializer = normal(1.0), dtype, rngs: nnx.Rngs):
        super().__init__(NUM_GRADES, features, embedding_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, grades: jax.Array) -> jax.Array:
        if jnp.issubdtype(grades.dtype, jnp.integer):
            return super().__call__(grades)
        return grades.astype(self.dtype) @ self.embedding[...].astype(self.dtype)


class Conv(nnx.Module):
    """Convolution [N, H, W, I] -> [N, h, w, O], computed in `dtype` with float32 parameters; `kernel` is [k, k, I, O].

    `padding` is (before, after) in pixels, the same on both axes. Keras's SAME padding at stride 2 is (1, 2) for kernel
    5 and (0, 1) for kernel 3; PyTorch's `padding=p` is (p, p).
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
        x, kernel = _shard(x.astype(self.dtype)), self.kernel[...].astype(self.dtype)
        y = _shard(convolution.conv(x, kernel, self.stride, self.padding))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class ConvTranspose(nnx.Module):
    """Transposed convolution, the adjoint of `Conv` with the same padding: [N, h, w, I] -> [N, H, W, O].

    H = (h - 1) * stride + k - before - after. That is PyTorch's size for padding (p, p), and Keras's SAME (h * stride)
    for (1, 2) with kernel 5 and (1, 1) with kernel 4 at stride 2. `kernel` is [k, k, O, I] as in Keras; PyTorch's is
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
        x, kernel = _shard(x.astype(self.dtype)), self.kernel[...].astype(self.dtype)
        height, width = ((size - 1) * self.stride + kernel.shape[0] - sum(self.padding) for size in x.shape[1:3])
        y = _shard(convolution.conv_input(x, kernel, self.stride, self.padding, (height, width)))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def keras_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm with the defaults of tf.keras: epsilon 1e-3, momentum 0.99. Statistics are float32 for any dtype."""
    return nnx.BatchNorm(features, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)


def torch_batch_norm(features: int, *, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm with the defaults of PyTorch (epsilon 1e-5, momentum 0.9 in Flax's sense) and scales from N(1, 0.02^2).

    The running variance is the biased one, as in Keras and Flax; PyTorch's is larger by N / (N - 1).
    """
    return nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=normal(0.02, mean=1.0), rngs=rngs
    )
