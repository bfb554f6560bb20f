"""The thesis's conditional GAN (3.3.1, Keras) for 32 x 32 RGB images.

The thesis does not state the latent size, kernel sizes and dropout rate. Those here are the usual ones of its source,
and give its parameter counts: generator 1,382,077, discriminator 212,987.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models.initializers import glorot_uniform
from idrid_jax.models.layers import Conv, ConvTranspose, GradeEmbedding, output_tanh


def _leaky(x):
    return nnx.leaky_relu(x, 0.2)


def _embedding(rngs: nnx.Rngs, dtype) -> GradeEmbedding:
    """Keras's Embedding(5, 50) with its initializer, U(-0.05, 0.05)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -0.05, 0.05)

    return GradeEmbedding(50, init=init, dtype=dtype, rngs=rngs)


class Generator(nnx.Module):
    """z [B, 100] and grades -> images [B, 32, 32, 3] in [-1, 1]; `width` is the number of channels of hidden layers."""

    def __init__(self, *, width: int = 128, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        convolution = dict(bias=True, init=glorot_uniform, **arguments)
        self.embed = _embedding(rngs, dtype)
        self.grade = nnx.Linear(50, 8 * 8, kernel_init=glorot_uniform, **arguments)
        self.latent = nnx.Linear(100, 8 * 8 * width, kernel_init=glorot_uniform, **arguments)
        self.up1 = ConvTranspose(width + 1, width, 4, 2, (1, 1), **convolution)
        self.up2 = ConvTranspose(width, width, 4, 2, (1, 1), **convolution)
        self.image = Conv(width, 3, 8, 1, (3, 4), **convolution)

    def __call__(self, z: jax.Array, grades: jax.Array) -> jax.Array:
        grade = self.grade(self.embed(grades)).reshape(-1, 8, 8, 1)
        x = _leaky(self.latent(z)).reshape(z.shape[0], 8, 8, -1)
        x = jnp.concatenate([x, grade], axis=-1)
        x = _leaky(self.up1(x))
        x = _leaky(self.up2(x))
        return output_tanh(self.image(x))


class Discriminator(nnx.Module):
    """Images [B, 32, 32, 3] in [-1, 1] and grades -> logits [B]; dropout takes `rngs` at the call."""

    def __init__(self, *, width: int = 128, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        convolution = dict(bias=True, init=glorot_uniform, **arguments)
        self.embed = _embedding(rngs, dtype)
        self.grade = nnx.Linear(50, 32 * 32, kernel_init=glorot_uniform, **arguments)
        self.down1 = Conv(4, width, 3, 2, (0, 1), **convolution)
        self.down2 = Conv(width, width, 3, 2, (0, 1), **convolution)
        self.dropout = nnx.Dropout(0.4)
        self.logit = nnx.Linear(8 * 8 * width, 1, kernel_init=glorot_uniform, **arguments)

    def features(self, images: jax.Array, grades: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        grade = self.grade(self.embed(grades)).reshape(-1, 32, 32, 1)
        x = jnp.concatenate([images.astype(grade.dtype), grade], axis=-1)
        x = _leaky(self.down1(x))
        x = _leaky(self.down2(x))
        return self.dropout(x.reshape(x.shape[0], -1), rngs=rngs)

    def logits(self, features: jax.Array, grades: jax.Array | None = None) -> jax.Array:
        return self.logit(features)[:, 0]

    def __call__(self, images: jax.Array, grades: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.logits(self.features(images, grades, rngs=rngs))
