"""A residual generator and discriminator for small, uneven sets, 64 to 1024 pixels: conditional on the grade.

No normalisation layer: what one photograph becomes depends on no other of its batch. Residual branches end in a
convolution that begins at 0, so each network begins as its shortcuts, whatever its depth (Zhang et al. 2019, "Fixup
initialization"; as a modern GAN: Huang et al. 2024, "The GAN is dead; long live the GAN!", R3GAN). Features change size
by a filter of [1, 3, 3, 1], so that what lies between two pixels makes no grid (Zhang 2019, "Making convolutional
networks shift-invariant again"). Most of the work would be beside the image: there the generator has few channels, and
the discriminator none, as it reads four pixels at once; it reads their detail emphasised (configs/retina.md has what
that gave).

Grades are int32 [B], or shares of the five, float32 [B, 5]: a row that sums to less than 1 is heard that much less,
which is how training goes from unconditional to conditional (Shahbazi et al. 2022, "Collapse by conditioning").
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models.convolution.blocking import materialized
from idrid_jax.models.initializers import variance_scaled
from idrid_jax.models.layers import Conv, GradeEmbedding, output_tanh

EMPHASIS = 10.0  # of detail in what the discriminator reads
PLAIN = 32  # pixels a side: detail is what so few do not hold
COARSE = 8  # pixels a side of the last level that all grades share: a rare grade borrows its anatomy from the others
LATENT_SIZE = 128
SLOPE = 0.2  # of LeakyReLU
RECTIFIED = (2 / (1 + SLOPE**2)) ** 0.5  # gain that keeps the variance behind a LeakyReLU: He et al. 2015, section 2.2


def _leaky(x):
    return nnx.leaky_relu(x, SLOPE)


def channels(size: int, side: int, most: int) -> int:
    """Channels of features with `side` pixels a side, in networks for images of `size`: 16 beside the image, 64 a level
    down, then twice as many a level, at most `most`; half as many at 1024."""
    return min(most, 16 if side == size else 32 * min(size, 512) // side)


def up(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C]: each new pixel has 9/16, 3/16, 3/16 and 1/16 of the nearest four."""
    for axis in (1, 2):
        double = functools.partial(_doubled, axis=axis)
        # on a CPU XLA would compute the first axis anew for each reader of the second: 5 times as long on the way back
        x = jax.lax.platform_dependent(x, cpu=functools.partial(materialized, double), default=double)
    return x


def _doubled(x, axis):
    before, after = _neighbours(x, axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def down(x: jax.Array) -> jax.Array:
    """[N, 2H, 2W, C] -> [N, H, W, C]: the filter [1, 3, 3, 1] / 8 along both axes, edges repeated."""
    for axis in (1, 2):
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)
        x = 0.375 * (even + odd) + 0.125 * (_neighbours(odd, axis, even)[0] + _neighbours(even, axis, odd)[1])
    return x


def _neighbours(x, axis, beyond=None):
    """What comes before and after each along `axis`; at the ends `beyond`'s, or its own, pixel is repeated."""
    beyond = x if beyond is None else beyond
    last = x.shape[axis] - 1
    cut = lambda of, start, stop: jax.lax.slice_in_dim(of, start, stop, axis=axis)
    before = jnp.concatenate([cut(beyond, 0, 1), cut(x, 0, last)], axis=axis)
    after = jnp.concatenate([cut(x, 1, last + 1), cut(beyond, last, last + 1)], axis=axis)
    return before, after


def emphasised(images: jax.Array) -> jax.Array:
    """[N, R, R, 3] -> [N, R, R, 6]: beside the images what `PLAIN` pixels a side (half of R at most) do not hold of
    them, `EMPHASIS` times. R is a power of two.

    That has a tenth to a fifteenth of the photographs' contrast. Layers that do not normalise would hear it so much
    less than the rest, and for long ask for none of it (Gal et al. 2021, "SWAGAN", give theirs wavelets for that).
    In float32 at least, as bfloat16 has no room for it beside the rest.
    """
    levels = max(1, (images.shape[1] // PLAIN).bit_length() - 1)
    plain = images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    for change in [down] * levels + [up] * levels:
        plain = change(plain)
    return jnp.concatenate([images, EMPHASIS * (images - plain)], axis=-1)


def edged(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H + 2, W + 2, C], edges repeated: black beyond them shows as squares in the image."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


class _Up(nnx.Module):
    """One level of the generator: features [N, H, W, I] and styles [N, S] -> [N, 2H, 2W, O]."""

    def __init__(self, inputs: int, outputs: int, style: int, *, dtype, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        self.style = nnx.Linear(style, inputs, kernel_init=variance_scaled(0.25), **arguments)
        self.first = Conv(inputs, outputs, 3, 1, (0, 0), bias=True, init=variance_scaled(RECTIFIED), **arguments)
        self.last = Conv(outputs, outputs, 3, 1, (0, 0), bias=True, init=variance_scaled(0.0), **arguments)
        short = dict(bias=False, init=variance_scaled(1.0), **arguments)
        self.short = Conv(inputs, outputs, 1, 1, (0, 0), **short) if inputs != outputs else None

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        gain = 1 + self.style(style)[:, None, None]
        branch = self.last(edged(_leaky(up(self.first(edged(_leaky(x) * gain))))))
        return up(x if self.short is None else self.short(x)) + branch


class _Down(nnx.Module):
    """One level of the discriminator: features [N, 2H, 2W, I] -> [N, H, W, O]."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        self.first = Conv(inputs, inputs, 3, 1, (1, 1), bias=True, init=variance_scaled(RECTIFIED), **arguments)
        self.last = Conv(inputs, outputs, 3, 1, (1, 1), bias=True, init=variance_scaled(0.0), **arguments)
        short = dict(bias=False, init=variance_scaled(1.0), **arguments)
        self.short = Conv(inputs, outputs, 1, 1, (0, 0), **short) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        branch = self.last(down(_leaky(self.first(_leaky(x)))))
        x = down(x)
        return (x if self.short is None else self.short(x)) + branch


def _sides(size: int) -> list[int]:
    return [4 << level for level in range(size.bit_length() - 2)]


class Generator(nnx.Module):
    """z [B, 128] and grades -> images [B, size, size, 3] in [-1, 1], float32 at least.

    Every level scales its channels by z (skip-layer excitation, Liu et al. 2021, "Towards faster and stabilized GAN
    training", section 3.1, from the latent itself); those finer than `COARSE` hear the grade too.

    Args:
      size: of the images, pixels a side, a power of two from 8 up.
      max_channels: of any layer.
      remat: activations within a level are computed again in the backward pass.
    """

    def __init__(self, size: int, *, max_channels: int = 512, remat: bool = False, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        width = [channels(size, side, max_channels) for side in _sides(size)]
        self.embed = GradeEmbedding(LATENT_SIZE, rngs=rngs, dtype=dtype)
        self.latent = nnx.Linear(LATENT_SIZE, 4 * 4 * width[0], kernel_init=variance_scaled(1.0), **arguments)
        self.up = nnx.List([_Up(i, o, LATENT_SIZE, **arguments) for i, o in zip(width, width[1:])])
        self.image = Conv(width[-1], 3, 3, 1, (0, 0), bias=True, init=variance_scaled(1.0), **arguments)
        self.remat = remat

    def __call__(self, z: jax.Array, grades: jax.Array) -> jax.Array:
        level = nnx.remat(_call) if self.remat else _call
        style = z + self.embed(grades)
        x = self.latent(z).reshape(z.shape[0], 4, 4, -1)
        for block in self.up:
            x = level(block, x, z if 2 * x.shape[1] <= COARSE else style)
        return output_tanh(self.image(edged(_leaky(x))))


class Discriminator(nnx.Module):
    """Images [B, size, size, 3] in [-1, 1] and grades -> logits [B], float32.

    The logit of a grade is the unconditional one plus a projection (Miyato and Koyama 2018, equation 3), so that what
    all grades teach is kept. Arguments as `Generator`.
    """

    def __init__(self, size: int, *, max_channels: int = 512, remat: bool = False, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        width = [channels(size, side, max_channels) for side in _sides(size)[:-1]][::-1]
        self.image = Conv(6, width[0], 4, 2, (1, 1), bias=True, init=variance_scaled(1.0), **arguments)
        self.down = nnx.List([_Down(i, o, **arguments) for i, o in zip(width, width[1:])])
        self.last = Conv(width[-1], width[-1], 4, 1, (0, 0), bias=True, init=variance_scaled(RECTIFIED), **arguments)
        self.logit = nnx.Linear(width[-1], 1, kernel_init=variance_scaled(1.0), rngs=rngs)
        self.embed = GradeEmbedding(width[-1], rngs=rngs, dtype=jnp.float32)
        self.remat = remat

    def features(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        level = nnx.remat(_call) if self.remat else _call
        x = self.image(emphasised(images))
        for block in self.down:
            x = level(block, x)
        return _leaky(self.last(_leaky(x)))[:, 0, 0].astype(jnp.float32)

    def logits(self, features: jax.Array, grades: jax.Array) -> jax.Array:
        projection = (features * self.embed(grades)).sum(axis=-1) / features.shape[-1] ** 0.5
        return self.logit(features)[:, 0] + projection

    def __call__(self, images: jax.Array, grades: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.logits(self.features(images, rngs=rngs), grades)


def _call(block, *args):
    return block(*args)
