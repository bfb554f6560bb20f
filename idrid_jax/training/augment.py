"""Augmentation of the discriminator's input, real and generated images alike, inside the training step; pure functions.

With a few hundred photographs the discriminator soon memorizes them and its gradients no longer help the generator.
Photographs that are rotated, shifted and relit differently at each step are harder to memorize. Generated images pass
through the same transforms, so the generator need not imitate transformed photographs.

That holds as long as the effect on a whole distribution of images is invertible (Karras et al. 2020, "Training
generative adversarial networks with limited data", section 2.2): each transform is applied with probability p only, so
for p < 1 a part of the images is unchanged. For p near 1 it fails: upright eyes rotated by up to 10 degrees look like
eyes that stand at 2 degrees and are rotated so, and the augmentation leaks into generated images.
`evaluation.augmentation_leak` measures that.

p is chosen in one of two ways:

- Fixed. 1 is DiffAugment (Zhao et al. 2020, "Differentiable augmentation for data-efficient GAN training"): simple, and
  suitable if small rotations in generated images do no harm.
- Adaptive (ADA, Karras et al. 2020, section 3): p increases while the discriminator is confident about real images and
  decreases otherwise. The fewer photographs, the higher p. Above 0.8 leaks begin (their section 2): look for them, and
  choose a higher `target`, which gives a lower p, or smaller strengths.

The transforms are those of acquiring a retinal photograph: rotation, distance, aim, exposure, contrast, saturation. Not
included are hue, because the color of a lesion is diagnostic (yellow exudates, white cotton-wool spots, red
hemorrhages); cutout, whose squares are the most frequently reported leak; and mirroring, which may leak without harm
and is `data.flip`, part of the data.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections

from idrid_jax.config_checks import TRANSFORMS

GEOMETRIC = TRANSFORMS[:3]
RADIUS = 2  # pixels, of the cubic kernel
KEY_STREAM = 0xA06  # folded into the key of a discriminator pass, of which dropout uses 0, 1, ...
MEAN_LIGHT = 0.7  # of the retinas in IDRiD's training photographs, light in [0, 2] (0.45 to 0.91 for 90 % of them)
SIGN_HALF_LIFE = 256  # images, of the moving mean sign; StyleGAN2-ADA averages four batches of 64


@dataclasses.dataclass(frozen=True)
class Strengths:
    """The largest amount of each transform. Amounts are uniform in both directions; 0 turns a transform off.

    Attributes:
      rotation: degrees, about the center of the image, which the crop puts at the center of the field of view.
      zoom: z scales an image by a factor of up to 1 + z, larger or smaller; at most 0.4.
      shift: fraction of the side, along rows and along columns.
      brightness: b multiplies light by 1 - b to 1 + b.
      contrast: c gives the tone curve, which preserves black and `MEAN_LIGHT`, a slope of 1 - c to 1 + c there.
      saturation: s multiplies the difference of each channel from the mean of the channels by 1 - s to 1 + s.
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    @property
    def window(self) -> int:
        """Side in pixels of a square that contains all pixels to which one pixel contributes; see `_gather_adjoint`."""
        angle = math.radians(min(self.rotation, 45.0))
        return math.ceil(2 * RADIUS * (1 + self.zoom) * (math.cos(angle) + math.sin(angle)))


# -- The augmentation of a run


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The transforms of the discriminator's input and the rule for p.

    Attributes:
      strengths: of the transforms.
      p: probability of each transform per image; None: adaptive, starting at 0.
      target: the value of E[sign(D(x))] for real images x at which an adaptive p is constant.
      adapt_images: number of real images in which an adaptive p can go from 0 to 1.
    """

    strengths: Strengths
    p: float | None = 1.0
    target: float = 0.6
    adapt_images: float = 100_000.0

    def __call__(self, images: jax.Array, key: jax.Array, state: dict[str, jax.Array]) -> jax.Array:
        """Return images [B, R, R, C] in [-1, 1] as the discriminator sees them.

        Args:
          key: of this discriminator pass.
          state: of an adaptive augmentation, as `initial_state` returns it; else empty.
        """
        return apply(images, jax.random.fold_in(key, KEY_STREAM), state.get("p", self.p), self.strengths)

    def adapt(self, state: dict[str, jax.Array], confidence: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        """Return the state after an update.

        p <- clip(p + sign(r - target) B / adapt_images, 0, 1), with r the moving mean of sign(confidence).
        Source: Karras et al. 2020, section 3, r_t, at every update instead of every fourth.

        Args:
          confidence: logits [B] of the real images as the discriminator saw them. For losses of pairs, which leave the
            logits without an absolute meaning, their difference from the logits of generated images.
          step: int32 [], number of updates done.
        """
        decay = 0.5 ** (len(confidence) / SIGN_HALF_LIFE)
        age = (step + 1).astype(jnp.float32)
        new = (1 - decay) / -jnp.expm1(math.log(decay) * age)  # removes the bias of the initial 0
        r = state["r"] + new * (jnp.sign(confidence.astype(jnp.float32)).mean() - state["r"])
        p = jnp.clip(state["p"] + jnp.sign(r - self.target) * (len(confidence) / self.adapt_images), 0, 1)
        return {"p": p, "r": r}


def initial_state() -> dict[str, jax.Array]:
    """Return the state of an adaptive augmentation: "p" and "r" of `adapt`, float32 []."""
    return {name: jnp.zeros((), jnp.float32) for name in ("p", "r")}


def strengths_from_config(config: ml_collections.ConfigDict) -> Strengths:
    """Return the strengths that `config.augment` sets, whatever its mode."""
    return Strengths(**{name: config.augment[name] for name in TRANSFORMS})


def augmentation_from_config(config: ml_collections.ConfigDict) -> Augmentation | None:
    """Return the augmentation that `config.augment` describes; None if its mode is "none"."""
    options = config.augment
    if options.mode == "none":
        return None
    p = options.p if options.mode == "fixed" else None
    return Augmentation(strengths_from_config(config), p=p, target=options.target, adapt_images=1000 * options.kimg)


# -- The transforms


def apply(images: jax.Array, key: jax.Array, p: jax.Array | float, strengths: Strengths) -> jax.Array:
    """Transform each of the images [B, R, R, C] in [-1, 1] by random amounts; shape and dtype are kept.

    Each transform is applied to an image with probability p (float32 [], possibly traced), independently. An image to
    which none is applied is returned bit for bit, so all images for p = 0. Values may leave [-1, 1] slightly, since
    clipping would remove gradients. Beyond the edges images are black (-1). Differentiable in the images to any order;
    computed in float32 or the wider dtype of the images. Grey images (C = 1) have no saturation.
    """
    amounts = sample_amounts(key, len(images), p, strengths)
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    light = before = wide + 1  # black is 0
    light = adjust_light(light, amounts)
    if any(getattr(strengths, name) for name in GEOMETRIC):
        light = resample(light, affine_parameters(amounts, images.shape[1]), strengths.window)
    return (wide + (light - before)).astype(images.dtype)  # an unchanged pixel adds an exact 0


def sample_amounts(key: jax.Array, count: int, p: jax.Array | float, strengths: Strengths) -> dict[str, jax.Array]:
    """Sample amounts of each transform for `count` images, float32 [count, 2], within the strengths.

    0 if an image does not get the transform. The shift uses both numbers (rows, columns), the others the first.
    """
    chance, *uniform = jax.random.uniform(key, (3, len(TRANSFORMS), count), jnp.float32)
    uniform = jnp.where(chance[..., None] < p, 2 * jnp.stack(uniform, -1) - 1, 0)
    return {name: getattr(strengths, name) * amount for name, amount in zip(TRANSFORMS, uniform, strict=True)}


def adjust_light(light: jax.Array, amounts: dict[str, jax.Array]) -> jax.Array:
    """Apply brightness, contrast and saturation to light [B, R, R, C], in which black is 0 and stays 0.

    With amounts b, c, s and the mean m of the channels of a pixel:

        l <- (1 + b) l
        l <- (1 + 2 c (m - M) / (m + M)) l    with M = `MEAN_LIGHT`
        l <- m + (1 + s) (l - m)

    The second has slope 1 + c at M, increases everywhere for |c| < 1/2, and keeps the ratios of the channels and so the
    hue.
    """
    b, c, s = (amounts[name][:, 0].reshape(-1, 1, 1, 1) for name in ("brightness", "contrast", "saturation"))
    light = (1 + b) * light
    grey = light if light.shape[-1] == 1 else _grey(light)
    gain = 1 + 2 * c * (grey - MEAN_LIGHT) / (grey + MEAN_LIGHT)
    return gain * (light + s * (light - grey))


@jax.custom_vjp
def _grey(light):
    """Replace each channel by the mean of the channels.

    The function is its own adjoint. The reductions over three channels that automatic differentiation would generate
    are slow on a CPU (`adjust_light` forward and backward, 32 images of 64 pixels: 9 ms; with this rule 0.7 ms).
    """
    return jnp.broadcast_to(sum(light[..., i : i + 1] for i in range(light.shape[-1])) / light.shape[-1], light.shape)


_grey.defvjp(lambda light: (_grey(light), None), lambda _, gradient: (_grey(gradient),))


def affine_parameters(amounts: dict[str, jax.Array], size: int) -> jax.Array:
    """Return the `affine` of `resample`, float32 [B, 4]: u, v (rotation and zoom), shift in rows and columns."""
    angle, shift = jnp.deg2rad(amounts["rotation"][:, 0]), amounts["shift"] * size
    zoom = amounts["zoom"][:, 0]
    zoom = jnp.where(zoom < 0, 1 / (1 - zoom), 1 + zoom)
    return jnp.stack([jnp.cos(angle) / zoom, jnp.sin(angle) / zoom, *shift.T], axis=-1)


# -- Bicubic resampling, linear in the images and closed under differentiation: its adjoint is a gather as well. The
# scatter that automatic differentiation generates is slower on a CPU (4 times for a bilinear kernel) and adds in
# nondeterministic order on a GPU. A bilinear kernel would blur structures of one or two pixels (configs/retina.md).


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def resample(light: jax.Array, affine: jax.Array, window: int) -> jax.Array:
    """Rotate and scale images [B, R, R, C] about their center and shift them, with bicubic interpolation.

    Output pixel o is the input at c + [[u, v], [-v, u]] (o - c - t), with c the center and 0 beyond the edges. The
    kernel is Keys' of 1981 with a = -0.5. Scaling is limited to 1 / 1.4, which needs no low-pass filter.

    Args:
      light: images of any floating dtype.
      affine: u, v, t (rows, columns, in pixels), float32 [B, 4]; not differentiable.
      window: `Strengths.window` for these parameters.
    """
    return _unless_identity(_gather, light, affine, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _resample_adjoint(gradient, affine, window):
    """Apply the adjoint of `resample` in `light`."""
    return _unless_identity(_gather_adjoint, gradient, affine, window)


resample.defvjp(
    lambda light, affine, window: (resample(light, affine, window), affine),
    lambda window, affine, gradient: (_resample_adjoint(gradient, affine, window), None),
)
_resample_adjoint.defvjp(
    lambda gradient, affine, window: (_resample_adjoint(gradient, affine, window), affine),
    lambda window, affine, light: (resample(light, affine, window), None),
)


def _unless_identity(move, images, affine, window):
    """Apply `move`, or return the images if none is moved.

    Only on CPUs: a GPU would wait for the condition. There the branch also keeps XLA from repeating the gather for each
    use of the result (`apply` forward and backward with a bilinear kernel, 32 images of 64 pixels: 2 ms, not 10 ms).
    """

    def moved(images, affine):
        return move(images, affine, window)

    def moved_if_needed(images, affine):
        needed = (affine != jnp.array([1, 0, 0, 0], affine.dtype)).any()
        return jax.lax.cond(needed, moved, lambda images, _: images, images, affine)

    return jax.lax.platform_dependent(images, affine, cpu=moved_if_needed, default=moved)


@functools.partial(jax.jit, static_argnums=2)  # traced once, not at each of an update's calls
def _gather(light, affine, window):
    size = light.shape[1]
    index = jnp.arange(size, dtype=jnp.float32)
    y, x = (jnp.clip(at, -RADIUS, size - 1 + RADIUS) for at in _source(affine, index[:, None], index, size))
    top, left = jnp.floor(y), jnp.floor(x)
    pixels_at = _shifted_gather(light, 2 * RADIUS - 1, 2 * RADIUS, top, left)
    around = range(1 - RADIUS, 1 + RADIUS)
    down, right = ([_cubic(at - first - i) for i in around] for at, first in ((y, top), (x, left)))
    total = 0
    for i in around:
        for j in around:
            weight = down[i + RADIUS - 1] * right[j + RADIUS - 1]
            total = total + weight[..., None].astype(light.dtype) * pixels_at(i, j)
    return total


@functools.partial(jax.jit, static_argnums=2)
def _gather_adjoint(gradient, affine, window):
    """Sum, for each input pixel s, the gradients of the output pixels to which it contributed.

    These have their source within `RADIUS` of s, so they are in a rotated square of side 2 RADIUS /
    |(u, v)| about the position to which s moved; the `window`^2 pixels nearest to that position contain it.
    """
    size = gradient.shape[1]
    index, middle = jnp.arange(size, dtype=jnp.float32), (size - 1) / 2
    u, v, rows, columns = (part[:, None, None] for part in affine.T)
    y, x, norm = index[:, None] - middle, index - middle, u * u + v * v
    y, x = (u * y - v * x) / norm + rows + middle, (v * y + u * x) / norm + columns + middle
    beyond = window // 2
    y, x = (jnp.clip((jnp.round if window % 2 else jnp.floor)(at), -beyond, size - 1 + beyond) for at in (y, x))
    pixels_at = _shifted_gather(gradient, 2 * beyond, 2 * beyond, y, x)
    around = range(-((window - 1) // 2), window // 2 + 1)
    total = 0
    for i in around:
        for j in around:
            to_y, to_x = _source(affine, y + i, x + j, size)  # rounded as in `_gather`
            weight = _cubic(to_y - index[:, None]) * _cubic(to_x - index)
            total = total + weight[..., None].astype(gradient.dtype) * pixels_at(i, j)
    return total


def _cubic(distance):
    """Return the weight of a pixel at a distance. Keys 1981, "Cubic convolution interpolation for digital image
    processing", equation 15."""
    d = jnp.abs(distance)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return jnp.where(d < 1, near, jnp.where(d < RADIUS, far, 0))


def _source(affine, y, x, size):
    """Return the source rows and columns, float32 [B, R, R], of output pixels at rows y and columns x."""
    u, v, rows, columns = (part[:, None, None] for part in affine.T)
    middle = (size - 1) / 2
    y, x = y - middle - rows, x - middle - columns
    return u * y + v * x + middle, u * x - v * y + middle


def _shifted_gather(images, before, after, y, x):
    """Return (i, j) -> pixels at integer rows y + i and columns x + j; 0 up to `before` and `after` pixels outside."""
    count, size, _, channels = images.shape
    side = size + before + after
    margin = (before, after)
    flat = jnp.pad(images, ((0, 0), margin, margin, (0, 0))).reshape(count, side * side, channels)
    index = (y.astype(jnp.int32) + before) * side + x.astype(jnp.int32) + before
    gather = jax.vmap(lambda pixels, index: pixels.at[index].get(mode="promise_in_bounds"))
    return lambda i, j: gather(flat, index + i * side + j)
