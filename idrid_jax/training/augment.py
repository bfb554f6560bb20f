"""Augmentation of what the discriminator is shown, real and fake alike, inside the step; pure.

With a few hundred photographs D soon knows each of them and tells G nothing any more. Those that are turned, moved and
lit anew at every look it cannot know by heart; and as G's images pass the same transforms on their way to D, G need not
draw a turned photograph to please it.

That holds while the transforms can be undone for a whole distribution (Karras et al. 2020, "Training Generative
Adversarial Networks with Limited Data", section 2.2): each is taken by an image with probability p only, so that below
1 some part of every image is there untouched. At p near 1 it fails. Upright eyes turned by up to 10 degrees look to D
much like eyes that stood at 2 degrees and were turned so: nothing pulls G back to the upright ones, and augmentation
*leaks* into its samples. `evaluation.leak` looks for that.

Two ways, by who chooses p:

- Constant. 1 is DiffAugment (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training"): simple,
  and harmless where a small turn in the samples is.
- Adaptive (ADA, Karras et al. 2020, section 3): up while D is sure of the real images, down while it is not. The fewer
  photographs, the surer is D and the higher p ends, which is where leaks begin: above some 0.8 (their section 2) look
  for them, and take a higher `target`, which asks for less, or smaller strengths.

The transforms are what a hand and a camera do to a retinal photograph: turning, distance, aim, exposure, contrast,
saturation. Left out are hue, as the colour of a lesion is the diagnosis (yellow exudates, white cotton wool, red
haemorrhages); cut-outs, whose squares are the leak that users of other code complain of most; and mirroring, which
makes left eyes of right ones: those exist, so that it may leak, and `data.flip` shows them as real images.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections

TRANSFORMS = ("rotation", "zoom", "shift", "brightness", "contrast", "saturation")
GEOMETRIC = TRANSFORMS[:3]
REACH = 2  # pixels either way: of `_cubic`
STREAM = 0xA06  # folded into the key of one of D's looks, of which dropout takes 0, 1, ...
MEAN_LIGHT = 0.7  # of IDRiD's training retinas, light 0 to 2 (from 0.45 to 0.91 in 90 % of them)
REAL_SIGNS = 256  # images: half-life of the mean sign; StyleGAN2-ADA takes means of four batches of 64


@dataclasses.dataclass(frozen=True)
class Strengths:
    """How far each transform goes at most; amounts are uniform within, and 0 leaves a transform out.

    Attributes:
      rotation: degrees, either way, about the image's centre, which the crop puts at the field of view's.
      zoom: z makes an image up to 1 + z times as large, or as small; at most 0.4.
      shift: share of the side, either way, along rows and along columns.
      brightness: b multiplies all light by 1 - b to 1 + b.
      contrast: c gives the curve of light, which holds black and `MEAN_LIGHT`, the slope 1 - c to 1 + c there.
      saturation: s multiplies each channel's distance from the mean of the three by 1 - s to 1 + s.
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    @property
    def window(self) -> int:
        """Pixels a side of the square that may take something of one pixel: see `_gather_back`."""
        angle = math.radians(min(self.rotation, 45.0))
        return math.ceil(2 * REACH * (1 + self.zoom) * (math.cos(angle) + math.sin(angle)))


# -- What the update is made with


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What D is shown, and how p goes on.

    Attributes:
      strengths: of the transforms.
      p: probability of each for each image; None where it adapts, beginning at 0.
      target: of E[sign(D(x))], x real images: where p stays.
      images: real images in which p can go from 0 to 1.
    """

    strengths: Strengths
    p: float | None = 1.0
    target: float = 0.6
    images: float = 100_000.0

    def __call__(self, images: jax.Array, key: jax.Array, state: dict[str, jax.Array]) -> jax.Array:
        """Images [B, R, R, C] in [-1, 1] as D is shown them. key: of this look of D's; state: `fresh`'s, or empty."""
        return apply(images, jax.random.fold_in(key, STREAM), state.get("p", self.p), self.strengths)

    def adapt(self, state: dict[str, jax.Array], sure: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        """The state after an update: p <- clip(p + sign(r - target) B / images, 0, 1), r the running mean of
        sign(sure). Karras et al. 2020, section 3, r_t, at every update in place of every fourth.

        sure: D's logits of the B real images as it was shown them; where the loss is of pairs, less those of the fake
        ones, as a logit alone says nothing then. step: int32 [], updates done.
        """
        decay = 0.5 ** (len(sure) / REAL_SIGNS)
        age = (step + 1).astype(jnp.float32)
        new = (1 - decay) / -jnp.expm1(math.log(decay) * age)  # a young mean is of what it saw, not of 0
        r = state["r"] + new * (jnp.sign(sure.astype(jnp.float32)).mean() - state["r"])
        p = jnp.clip(state["p"] + jnp.sign(r - self.target) * (len(sure) / self.images), 0, 1)
        return {"p": p, "r": r}


def initial_state() -> dict[str, jax.Array]:
    """The state of an augmentation that adapts: "p", and "r" of `adapt`, float32 []."""
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
    return Augmentation(strengths_from_config(config), p=p, target=options.target, images=1000 * options.kimg)


# -- The transforms


def apply(images: jax.Array, key: jax.Array, p: jax.Array | float, strengths: Strengths) -> jax.Array:
    """Images [B, R, R, C] in [-1, 1], each transformed in its own way, of the same shape and dtype.

    Each transform of an image is taken with probability p (float32 [], traced or not), independently. An image for
    which none is taken comes back bit for bit: all of them at p = 0. Values may leave [-1, 1] a little, as a clip would
    have no slope. What comes in from outside is black (-1), as around a photograph. Differentiable in the images to any
    order; arithmetic is in float32, or in the images' own where that is wider. Grey images (C = 1) have no saturation.
    """
    amounts = draw(key, len(images), p, strengths)
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    light = before = wide + 1  # black is 0
    light = relit(light, amounts)
    if any(getattr(strengths, name) for name in GEOMETRIC):
        light = resample(light, placed(amounts, images.shape[1]), strengths.window)
    return (wide + (light - before)).astype(images.dtype)  # what no amount changed is added as an exact 0


def draw(key: jax.Array, count: int, p: jax.Array | float, strengths: Strengths) -> dict[str, jax.Array]:
    """Amounts of the transforms for so many images, float32 [count, 2], within the strengths either way; 0 for one that
    an image does not take. The shift takes both numbers (rows, columns), the others the first."""
    chance, *uniform = jax.random.uniform(key, (3, len(TRANSFORMS), count), jnp.float32)
    uniform = jnp.where(chance[..., None] < p, 2 * jnp.stack(uniform, -1) - 1, 0)
    return {name: getattr(strengths, name) * amount for name, amount in zip(TRANSFORMS, uniform, strict=True)}


def relit(light: jax.Array, amounts: dict[str, jax.Array]) -> jax.Array:
    """light [B, R, R, C], in which 0 is black and stays so. With b, c, s the amounts and m the mean of the channels:

    l <- (1 + b) l, then l <- (1 + 2 c (m - M) / (m + M)) l with M = `MEAN_LIGHT`, then l <- m + (1 + s) (l - m).

    The second has slope 1 + c at M and rises everywhere for |c| below 1/2; it keeps the ratios of the channels, so the
    hue. None of the three needs anything but the pixel itself.
    """
    b, c, s = (amounts[name][:, 0].reshape(-1, 1, 1, 1) for name in ("brightness", "contrast", "saturation"))
    light = (1 + b) * light
    grey = light if light.shape[-1] == 1 else _grey(light)
    gain = 1 + 2 * c * (grey - MEAN_LIGHT) / (grey + MEAN_LIGHT)
    return gain * (light + s * (light - grey))


@jax.custom_vjp
def _grey(light):
    """The mean of the channels in place of each. It is its own adjoint; the sums over three channels that autodiff
    would make of it are slow on a CPU (colours forward and back, 32 images of 64 pixels: 9 ms, so 0.7)."""
    return jnp.broadcast_to(sum(light[..., i : i + 1] for i in range(light.shape[-1])) / light.shape[-1], light.shape)


_grey.defvjp(lambda light: (_grey(light), None), lambda _, gradient: (_grey(gradient),))


def placed(amounts: dict[str, jax.Array], size: int) -> jax.Array:
    """Where images are moved to, float32 [B, 4], for `resample`: u, v (rotation and zoom), rows, columns (pixels)."""
    angle, shift = jnp.deg2rad(amounts["rotation"][:, 0]), amounts["shift"] * size
    zoom = amounts["zoom"][:, 0]
    zoom = jnp.where(zoom < 0, 1 / (1 - zoom), 1 + zoom)
    return jnp.stack([jnp.cos(angle) / zoom, jnp.sin(angle) / zoom, *shift.T], axis=-1)


# -- One bicubic resampling, linear in the images and closed under differentiation: its adjoint is a gather, too. The
# scatter that autodiff would make of it takes longer on a CPU (of a bilinear one, 4 times), and adds in any order on a
# GPU. Bilinear it would take more of what is one or two pixels wide: configs/retina.md, fifth round.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def resample(light: jax.Array, place: jax.Array, window: int) -> jax.Array:
    """Images [B, R, R, C] turned and scaled about their centre and moved: pixel o becomes what lies at
    c + [[u, v], [-v, u]] (o - c - t), c the centre, in bicubic interpolation (Keys 1981, a = -0.5); 0 outside.

    Shrinking to 1 / 1.4 at least, it needs no low-pass filter.

    Args:
      light: any floating dtype.
      place: u, v, t (rows, columns, in pixels), float32 [B, 4], in which it is constant.
      window: `Strengths.window` of these.
    """
    return _where_moved(_gather, light, place, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(gradient, place, window):
    """The adjoint of `resample` in `light`."""
    return _where_moved(_gather_back, gradient, place, window)


resample.defvjp(
    lambda light, place, window: (resample(light, place, window), place),
    lambda window, place, gradient: (_spread(gradient, place, window), None),
)
_spread.defvjp(
    lambda gradient, place, window: (_spread(gradient, place, window), place),
    lambda window, place, light: (resample(light, place, window), None),
)


def _where_moved(move, images, place, window):
    """`move`, or the images where none is moved at all. A GPU would wait for that decision; on a CPU the branch also
    keeps XLA from gathering anew for each that reads the result (all of `apply` forward and back, 32 images of 64
    pixels: 2 ms, not 10, when it was bilinear)."""
    moves = lambda images, place: move(images, place, window)
    moved = lambda place: (place != jnp.array([1, 0, 0, 0], place.dtype)).any()
    decided = lambda images, place: jax.lax.cond(moved(place), moves, lambda images, _: images, images, place)
    return jax.lax.platform_dependent(images, place, cpu=decided, default=moves)


def _gather(light, place, window):
    size = light.shape[1]
    index = jnp.arange(size, dtype=jnp.float32)
    y, x = (jnp.clip(at, -REACH, size - 1 + REACH) for at in _source(place, index[:, None], index, size))
    top, left = jnp.floor(y), jnp.floor(x)
    take = _taker(light, 2 * REACH - 1, 2 * REACH, top, left)
    around = range(1 - REACH, 1 + REACH)
    down, right = ([_cubic(at - first - i) for i in around] for at, first in ((y, top), (x, left)))
    total = 0
    for i in around:
        for j in around:
            total = total + (down[i + REACH - 1] * right[j + REACH - 1])[..., None].astype(light.dtype) * take(i, j)
    return total


def _gather_back(gradient, place, window):
    """A pixel s gave to the pixels o whose source lies within REACH of it. They are in a square of side
    2 REACH / |(u, v)|, turned, about the place that s itself moved to: the nearest `window`^2 hold it."""
    size = gradient.shape[1]
    index, middle = jnp.arange(size, dtype=jnp.float32), (size - 1) / 2
    u, v, rows, columns = (part[:, None, None] for part in place.T)
    y, x, norm = index[:, None] - middle, index - middle, u * u + v * v
    y, x = (u * y - v * x) / norm + rows + middle, (v * y + u * x) / norm + columns + middle
    beyond = window // 2
    y, x = (jnp.clip((jnp.round if window % 2 else jnp.floor)(at), -beyond, size - 1 + beyond) for at in (y, x))
    take = _taker(gradient, 2 * beyond, 2 * beyond, y, x)
    around = range(-((window - 1) // 2), window // 2 + 1)
    total = 0
    for i in around:
        for j in around:
            to_y, to_x = _source(place, y + i, x + j, size)  # again, as `_gather` rounds it
            weight = _cubic(to_y - index[:, None]) * _cubic(to_x - index)
            total = total + weight[..., None].astype(gradient.dtype) * take(i, j)
    return total


def _cubic(distance):
    """The share of a pixel so far away. Keys, "Cubic convolution interpolation for digital image processing", 1981."""
    d = jnp.abs(distance)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return jnp.where(d < 1, near, jnp.where(d < REACH, far, 0))


def _source(place, y, x, size):
    """Where pixels at rows y and columns x take their light from: rows and columns, float32 [B, R, R]."""
    u, v, rows, columns = (part[:, None, None] for part in place.T)
    middle = (size - 1) / 2
    y, x = y - middle - rows, x - middle - columns
    return u * y + v * x + middle, u * x - v * y + middle


def _taker(images, before, after, y, x):
    """(i, j) -> the pixels at whole rows y + i and columns x + j; 0 up to `before` and `after` pixels outside."""
    count, size, _, channels = images.shape
    side = size + before + after
    margin = (before, after)
    flat = jnp.pad(images, ((0, 0), margin, margin, (0, 0))).reshape(count, side * side, channels)
    index = (y.astype(jnp.int32) + before) * side + x.astype(jnp.int32) + before
    gather = jax.vmap(lambda pixels, index: pixels.at[index].get(mode="promise_in_bounds"))
    return lambda i, j: gather(flat, index + i * side + j)
