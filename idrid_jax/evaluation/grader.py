"""Trains `models.classifier.Grader` on graded images and reads grades with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from idrid_jax.data.layout import GRADES
from idrid_jax.models.classifier import Grader
from idrid_jax.models.functional import Functional, Tree, functional

AT_ONCE = 128  # images read in one go


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every training gets, whatever it learns from."""

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3  # of AdamW, falling to 0 along a cosine
    weight_decay: float = 1e-2


def network(size: int, channels: int) -> Functional:
    return functional(functools.partial(Grader, size, channels, len(GRADES)))


def train(images: np.ndarray, grades: np.ndarray, odds: np.ndarray, *, seed: int, budget: Budget = Budget()) -> Tree:
    """Parameters learned from graded images.

    Args:
      images: uint8 [N, R, R, C].
      grades: int [N] in 0..4.
      odds: float [N], how often an image is drawn beside the others; 0 for one that is only there so that N is the same
        (a program is compiled for each N).
      seed: draws parameters, batches and their augmentation.
    Cross-entropy, weighted so that every grade that is drawn counts alike.
    """
    odds = np.asarray(odds, np.float64) / np.sum(odds)
    drawn = np.bincount(grades, weights=odds, minlength=len(GRADES))
    weights = np.where(drawn > 0, 1 / np.maximum(drawn, 1e-12) / np.count_nonzero(drawn), 0)
    return _train(budget, images, grades.astype(np.int32), *map(np.float32, (odds, weights)), jax.random.key(seed))


def read(params: Tree, images: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, C] -> the probability of each grade, float32 [N, 5]."""
    parts = []
    for start in range(0, len(images), AT_ONCE):
        part = np.asarray(images[start : start + AT_ONCE])
        full = np.concatenate([part, np.zeros((AT_ONCE - len(part), *part.shape[1:]), np.uint8)])
        parts.append(np.asarray(_read(params, full))[: len(part)])
    return np.concatenate(parts) if parts else np.zeros((0, len(GRADES)), np.float32)


@jax.jit
def _read(params, images):
    return jax.nn.softmax(network(*images.shape[2:]).eval(params, {}, _to_float(images)))


@functools.partial(jax.jit, static_argnums=0)
def _train(budget: Budget, images, grades, odds, weights, key) -> Tree:
    grader = network(*images.shape[2:])
    schedule = optax.cosine_decay_schedule(budget.learning_rate, budget.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=budget.weight_decay))
    params, _ = grader.init(jax.random.fold_in(key, budget.steps))
    upto = jnp.cumsum(odds)

    def objective(params, x, y):
        logits, _ = grader.train(params, {}, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return (weights[y] * losses).mean()

    def update(carry, step):
        params, opt = carry
        draw, change = jax.random.split(jax.random.fold_in(key, step))
        at = jax.random.uniform(draw, (budget.batch_size,)) * upto[-1]
        index = jnp.searchsorted(upto, at, side="right").clip(0, len(odds) - 1)
        x = augment(change, _to_float(images[index]))
        gradients = jax.grad(objective)(params, x, grades[index])
        updates, opt = tx.update(gradients, opt, params)
        return (optax.apply_updates(params, updates), opt), None

    (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), jnp.arange(budget.steps))
    return params


def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    """What leaves the grade of a photograph as it is: mirrored or not, turned by any angle about its centre, a little
    brighter or darker, more or less contrast. float32 [N, R, R, C] in [-1, 1] -> the same; corners turn in black."""
    mirror, turn, bright, contrast = jax.random.split(key, 4)
    n, size, _, channels = x.shape
    x = jnp.where(jax.random.bernoulli(mirror, 0.5, (n, 1, 1, 1)), x[:, :, ::-1], x)
    angle = jax.random.uniform(turn, (n,), maxval=2 * jnp.pi)
    centre = (size - 1) / 2
    row, column = jnp.meshgrid(*(jnp.arange(size) - centre,) * 2, indexing="ij")
    turned = lambda a: (
        jnp.cos(a) * row - jnp.sin(a) * column + centre,
        jnp.sin(a) * row + jnp.cos(a) * column + centre,
    )
    one = lambda image, a: map_coordinates(image, turned(a), order=1, mode="constant", cval=-1.0)
    x = jax.vmap(jax.vmap(one, in_axes=(2, None), out_axes=2))(x, angle)
    scale = 1 + jax.random.uniform(contrast, (n, 1, 1, 1), minval=-0.1, maxval=0.1)
    shift = jax.random.uniform(bright, (n, 1, 1, 1), minval=-0.1, maxval=0.1)
    return jnp.where(x > -0.95, (x * scale + shift).clip(-1, 1), x)  # the black around the field stays


def _to_float(images):
    return images.astype(jnp.float32) / 127.5 - 1
