"""The thesis's DCGANs (3.3.2): of the tf.keras tutorial for 28 x 28 grey images, of PyTorch's for 128 x 128 RGB images.

The thesis states "64x64" for the second, but its layers give 128 x 128; `dcgan64` has another last layer and the stated
size. The stated discriminator padding of 1 does not reach 1 x 1 from either size; padding 6 mirrors the generator. The
networks of 256 pixels and more have further layers of the same kind. All are unconditional: they ignore `grades`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models.initializers import glorot_uniform, normal
from idrid_jax.models.layers import Conv, ConvTranspose, keras_batch_norm, output_tanh, torch_batch_norm

normal_02 = normal(0.02)  # Radford et al. 2016, section 4


def _leaky_keras(x):
    return nnx.leaky_relu(x, 0.3)  # tf.keras's default slope


class Generator28(nnx.Module):
    """z [B, 100] -> images [B, 28, 28, 1] in [-1, 1]; 2,305,472 parameters; `width`: channels next to the image."""

    def __init__(self, *, width: int = 64, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        convolution = dict(bias=False, init=glorot_uniform, **arguments)
        self.latent = nnx.Linear(100, 7 * 7 * 4 * width, use_bias=False, kernel_init=glorot_uniform, **arguments)
        self.norm0 = keras_batch_norm(7 * 7 * 4 * width, **arguments)
        self.up1 = ConvTranspose(4 * width, 2 * width, 5, 1, (2, 2), **convolution)
        self.norm1 = keras_batch_norm(2 * width, **arguments)
        self.up2 = ConvTranspose(2 * width, width, 5, 2, (1, 2), **convolution)
        self.norm2 = keras_batch_norm(width, **arguments)
        self.image = ConvTranspose(width, 1, 5, 2, (1, 2), **convolution)

    def __call__(self, z: jax.Array, grades: jax.Array | None = None) -> jax.Array:
        x = _leaky_keras(self.norm0(self.latent(z))).reshape(z.shape[0], 7, 7, -1)
        x = _leaky_keras(self.norm1(self.up1(x)))
        x = _leaky_keras(self.norm2(self.up2(x)))
        return output_tanh(self.image(x))


class Discriminator28(nnx.Module):
    """Images [B, 28, 28, 1] in [-1, 1] -> logits [B]; 212,865 parameters; dropout takes `rngs` at the call."""

    def __init__(self, *, width: int = 64, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        convolution = dict(bias=True, init=glorot_uniform, **arguments)
        self.down1 = Conv(1, width, 5, 2, (1, 2), **convolution)
        self.down2 = Conv(width, 2 * width, 5, 2, (1, 2), **convolution)
        self.dropout = nnx.Dropout(0.3)
        self.logit = nnx.Linear(7 * 7 * 2 * width, 1, kernel_init=glorot_uniform, **arguments)

    def features(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        x = self.dropout(_leaky_keras(self.down1(images)), rngs=rngs)
        x = self.dropout(_leaky_keras(self.down2(x)), rngs=rngs)
        return x.reshape(x.shape[0], -1)

    def logits(self, features: jax.Array, grades: jax.Array | None = None) -> jax.Array:
        return self.logit(features)[:, 0]

    def __call__(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        return self.logits(self.features(images, grades, rngs=rngs))


def _last_layer(size: int) -> tuple[int, int, tuple[int, int]]:
    """Kernel size, stride and padding of the layer at the image; the thesis's 128-pixel network scales by 4 there."""
    return (16, 4, (6, 6)) if size == 128 else (4, 2, (1, 1))


def _channels(size: int, width: int, max_channels: int) -> list[int]:
    """Channels of each level from 4 x 4 to the image: `width` next to the image, doubled per level away from it."""
    levels = (size // _last_layer(size)[1]).bit_length() - 2
    return [min(max_channels, width << level) for level in range(levels)][::-1]


class Generator(nnx.Module):
    """z [B, 100] -> images [B, size, size, 3] in [-1, 1].

    Parameters: 3,576,704 at 64, 3,622,784 at 128 (both as in the thesis), 11,967,360 at 256, 4,195,328 more per level.

    Args:
      size: pixels per side, a power of 2 from 64 to 1024.
      width: channels next to the image.
      max_channels: upper limit on the channels of a layer.
      remat: recompute activations within a level in the backward pass (Chen et al. 2016, "Training deep nets with
        sublinear memory cost").
    """

    def __init__(
        self,
        size: int,
        *,
        width: int = 64,
        max_channels: int = 512,
        remat: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = _channels(size, width, max_channels)
        convolution = dict(bias=False, init=normal_02, dtype=dtype, rngs=rngs)
        up = [ConvTranspose(100, channels[0], 4, 1, (0, 0), **convolution)]
        up += [ConvTranspose(i, o, 4, 2, (1, 1), **convolution) for i, o in zip(channels, channels[1:])]
        self.up = nnx.List(up)
        self.norm = nnx.List([torch_batch_norm(c, dtype=dtype, rngs=rngs) for c in channels])
        self.image = ConvTranspose(channels[-1], 3, *_last_layer(size), **convolution)
        self.remat = remat

    def __call__(self, z: jax.Array, grades: jax.Array | None = None) -> jax.Array:
        level = nnx.remat(_up) if self.remat else _up
        x = z[:, None, None, :]
        for up, norm in zip(self.up, self.norm):
            x = level(up, norm, x)
        return output_tanh(self.image(x))


class Discriminator(nnx.Module):
    """Images [B, size, size, 3] in [-1, 1] -> logits [B]: the mirror image of `Generator`, with its arguments.

    Parameters: 2,765,568 at 64, 2,811,648 at 128 (both as in the thesis), 11,156,224 at 256, 4,195,328 more per level.
    """

    def __init__(
        self,
        size: int,
        *,
        width: int = 64,
        max_channels: int = 512,
        remat: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = _channels(size, width, max_channels)[::-1]
        convolution = dict(bias=False, init=normal_02, dtype=dtype, rngs=rngs)
        self.image = Conv(3, channels[0], *_last_layer(size), **convolution)
        self.down = nnx.List([Conv(i, o, 4, 2, (1, 1), **convolution) for i, o in zip(channels, channels[1:])])
        self.norm = nnx.List([torch_batch_norm(c, dtype=dtype, rngs=rngs) for c in channels[1:]])
        self.logit = Conv(channels[-1], 1, 4, 1, (0, 0), **convolution)
        self.remat = remat

    def features(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        level = nnx.remat(_down) if self.remat else _down
        x = nnx.leaky_relu(self.image(images), 0.2)
        for down, norm in zip(self.down, self.norm):
            x = level(down, norm, x)
        return x

    def logits(self, features: jax.Array, grades: jax.Array | None = None) -> jax.Array:
        return self.logit(features)[:, 0, 0, 0]

    def __call__(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        return self.logits(self.features(images, grades, rngs=rngs))


def _up(convolution: ConvTranspose, norm: nnx.BatchNorm, x: jax.Array) -> jax.Array:
    return nnx.relu(norm(convolution(x)))


def _down(convolution: Conv, norm: nnx.BatchNorm, x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(norm(convolution(x)), 0.2)
