"""A conditional residual generator and discriminator for small, imbalanced data sets, 64 to 1024 pixels.

- No normalization layers, so the output for an image does not depend on the rest of its batch. The last convolution of
  each residual branch starts at 0, so a network starts as its shortcuts, whatever its depth (Zhang et al. 2019, "Fixup
  initialization"; in a modern GAN: Huang et al. 2024, "The GAN is dead; long live the GAN!", R3GAN).
- Features are resampled with the filter [1, 3, 3, 1], which avoids grid artifacts (Zhang 2019, "Making convolutional
  networks shift-invariant again").
- Few channels at full resolution, where most of the computation would be: the generator has 16 there, and the first
  layer of the discriminator has stride 2.
- The discriminator also sees the fine detail of the images, amplified; `configs/retina.md` reports its effect.

Grade weights float32 [B, 5] may sum to less than 1, which conditions the networks less strongly. Training uses that to
go from unconditional to conditional (Shahbazi et al. 2022, "Collapse by conditioning").
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models.convolution.blocking import materialized
from idrid_jax.models.initializers import variance_scaled
from idrid_jax.models.layers import Conv, GradeEmbedding, output_tanh

LATENT_SIZE = 128
UNCONDITIONAL_SIZE = 8  # pixels per side up to which generator levels ignore the grade: rare grades share anatomy
LOWPASS_SIZE = 32  # pixels per side of the image whose difference from the original is its detail
DETAIL_GAIN = 10.0  # of the detail in the input of the discriminator
SLOPE = 0.2  # of LeakyReLU
LEAKY_GAIN = (2 / (1 + SLOPE**2)) ** 0.5  # preserves the variance through a LeakyReLU: He et al. 2015, section 2.2


def _leaky(x):
    return nnx.leaky_relu(x, SLOPE)


def num_channels(size: int, side: int, max_channels: int) -> int:
    """Return the channels of features with `side` pixels per side in networks for images of `size` pixels.

    16 at full resolution, 64 one level down, then twice as many per level up to `max_channels`; half of that at 1024.
    """
    return min(max_channels, 16 if side == size else 32 * min(size, 512) // side)


def upsample(x: jax.Array) -> jax.Array:
    """Upsample [N, H, W, C] to [N, 2H, 2W, C] with weights 9/16, 3/16, 3/16, 1/16 of the nearest four pixels."""
    for axis in (1, 2):
        double = functools.partial(_double, axis=axis)
        # XLA on CPU would recompute the first axis for each use in the second: 5 times slower in the backward pass
        x = jax.lax.platform_dependent(x, cpu=functools.partial(materialized, double), default=double)
    return x


def _double(x: jax.Array, axis: int) -> jax.Array:
    before, after = _neighbors(x, axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def downsample(x: jax.Array) -> jax.Array:
    """Downsample [N, 2H, 2W, C] to [N, H, W, C] with the filter [1, 3, 3, 1] / 8 on both axes; edges are replicated."""
    for axis in (1, 2):
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)
        x = 0.375 * (even + odd) + 0.125 * (_neighbors(odd, axis, even)[0] + _neighbors(even, axis, odd)[1])
    return x


def _neighbors(x: jax.Array, axis: int, edge: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the previous and the next entries along `axis`; beyond the ends those of `edge`, by default of x."""
    edge = x if edge is None else edge
    last = x.shape[axis] - 1
    cut = functools.partial(jax.lax.slice_in_dim, axis=axis)
    before = jnp.concatenate([cut(edge, 0, 1), cut(x, 0, last)], axis=axis)
    after = jnp.concatenate([cut(x, 1, last + 1), cut(edge, last, last + 1)], axis=axis)
    return before, after


def add_detail_channels(images: jax.Array) -> jax.Array:
    """Concatenate to images [N, R, R, 3] their amplified fine detail: [N, R, R, 6], float32 or wider.

    Detail is the difference from a low-pass copy of `LOWPASS_SIZE` pixels per side (R / 2 at most; R is a power of 2),
    times `DETAIL_GAIN`. Its contrast is a tenth to a fifteenth of the photographs', so networks without normalization
    would learn it late (Gal et al. 2021, "SWAGAN", use wavelets for that). bfloat16 could not represent it.
    """
    levels = max(1, (images.shape[1] // LOWPASS_SIZE).bit_length() - 1)
    lowpass = images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    for resample in [downsample] * levels + [upsample] * levels:
        lowpass = resample(lowpass)
    return jnp.concatenate([images, DETAIL_GAIN * (images - lowpass)], axis=-1)


def pad_edges(x: jax.Array) -> jax.Array:
    """Pad [N, H, W, C] to [N, H + 2, W + 2, C] by replicating edges; zero padding shows as squares in the images."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


class _UpBlock(nnx.Module):
    """One level of the generator: features [N, H, W, I] and styles [N, S] -> [N, 2H, 2W, O]."""

    def __init__(self, inputs: int, outputs: int, style: int, *, dtype, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        self.style = nnx.Linear(style, inputs, kernel_init=variance_scaled(0.25), **arguments)
        self.first = Conv(inputs, outputs, 3, 1, (0, 0), bias=True, init=variance_scaled(LEAKY_GAIN), **arguments)
        self.last = Conv(outputs, outputs, 3, 1, (0, 0), bias=True, init=variance_scaled(0.0), **arguments)
        short = dict(bias=False, init=variance_scaled(1.0), **arguments)
        self.short = Conv(inputs, outputs, 1, 1, (0, 0), **short) if inputs != outputs else None

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        gain = 1 + self.style(style)[:, None, None]
        branch = self.last(pad_edges(_leaky(upsample(self.first(pad_edges(_leaky(x) * gain))))))
        return upsample(x if self.short is None else self.short(x)) + branch


class _DownBlock(nnx.Module):
    """One level of the discriminator: features [N, 2H, 2W, I] -> [N, H, W, O]."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        self.first = Conv(inputs, inputs, 3, 1, (1, 1), bias=True, init=variance_scaled(LEAKY_GAIN), **arguments)
        self.last = Conv(inputs, outputs, 3, 1, (1, 1), bias=True, init=variance_scaled(0.0), **arguments)
        short = dict(bias=False, init=variance_scaled(1.0), **arguments)
        self.short = Conv(inputs, outputs, 1, 1, (0, 0), **short) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        branch = self.last(downsample(_leaky(self.first(_leaky(x)))))
        x = downsample(x)
        return (x if self.short is None else self.short(x)) + branch


def _sides(size: int) -> list[int]:
    return [4 << level for level in range(size.bit_length() - 2)]


class Generator(nnx.Module):
    """z [B, 128] and grades -> images [B, size, size, 3] in [-1, 1], float32 or wider.

    Each level scales its channels by a function of z (skip-layer excitation, Liu et al. 2021, "Towards faster and
    stabilized GAN training", section 3.1, from the latent instead of coarser features); levels finer than
    `UNCONDITIONAL_SIZE` also by the grade.

    Args:
      size: pixels per side, a power of 2, at least 8.
      max_channels: upper limit on the channels of a layer.
      remat: recompute activations within a level in the backward pass.
    """

    def __init__(self, size: int, *, max_channels: int = 512, remat: bool = False, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        width = [num_channels(size, side, max_channels) for side in _sides(size)]
        self.embed = GradeEmbedding(LATENT_SIZE, rngs=rngs, dtype=dtype)
        self.latent = nnx.Linear(LATENT_SIZE, 4 * 4 * width[0], kernel_init=variance_scaled(1.0), **arguments)
        self.up = nnx.List([_UpBlock(i, o, LATENT_SIZE, **arguments) for i, o in zip(width, width[1:])])
        self.image = Conv(width[-1], 3, 3, 1, (0, 0), bias=True, init=variance_scaled(1.0), **arguments)
        self.remat = remat

    def __call__(self, z: jax.Array, grades: jax.Array) -> jax.Array:
        level = nnx.remat(_call) if self.remat else _call
        style = z + self.embed(grades)
        x = self.latent(z).reshape(z.shape[0], 4, 4, -1)
        for block in self.up:
            x = level(block, x, z if 2 * x.shape[1] <= UNCONDITIONAL_SIZE else style)
        return output_tanh(self.image(pad_edges(_leaky(x))))


class Discriminator(nnx.Module):
    """Images [B, size, size, 3] in [-1, 1] and grades -> logits [B], float32. Arguments as for `Generator`.

    The logit is an unconditional one, learned from all grades, plus a projection on the embedding of the grade (Miyato
    and Koyama 2018, "cGANs with projection discriminator", equation 3).
    """

    def __init__(self, size: int, *, max_channels: int = 512, remat: bool = False, dtype=jnp.float32, rngs: nnx.Rngs):
        arguments = dict(dtype=dtype, rngs=rngs)
        width = [num_channels(size, side, max_channels) for side in _sides(size)[:-1]][::-1]
        self.image = Conv(6, width[0], 4, 2, (1, 1), bias=True, init=variance_scaled(1.0), **arguments)
        self.down = nnx.List([_DownBlock(i, o, **arguments) for i, o in zip(width, width[1:])])
        self.last = Conv(width[-1], width[-1], 4, 1, (0, 0), bias=True, init=variance_scaled(LEAKY_GAIN), **arguments)
        self.logit = nnx.Linear(width[-1], 1, kernel_init=variance_scaled(1.0), rngs=rngs)
        self.embed = GradeEmbedding(width[-1], rngs=rngs, dtype=jnp.float32)
        self.remat = remat

    def features(
        self, images: jax.Array, grades: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        level = nnx.remat(_call) if self.remat else _call
        x = self.image(add_detail_channels(images))
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
