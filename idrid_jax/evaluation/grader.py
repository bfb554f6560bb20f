"""Trains `models.classifier.Grader` on graded images and reads grades with it."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from idrid_jax.batching import map_in_batches
from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.images import to_float
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
    side: int = 64  # pixels at which grades are read, at most: at 128 a training takes minutes on two cores


def network(size: int, channels: int, *, edema: bool = False) -> Functional:
    """Logits of the grades, and of the risk of macular oedema after them."""
    return functional(functools.partial(Grader, size, channels, len(GRADES) + (len(EDEMA) if edema else 0)))


def train(
    images: np.ndarray,
    grades: np.ndarray,
    odds: np.ndarray,
    *,
    seeds: Sequence[int],
    edema: np.ndarray | None = None,
    budget: Budget = Budget(),
) -> Tree:
    """Parameters learned from graded images, each with a leading axis for the seeds, which are learned side by side.

    Args:
      images: uint8 [N, R, R, C].
      grades: int [N] in 0..4.
      odds: float [N], how often an image is drawn beside the others; 0 for one that is only there so that N is the same
        (a program is compiled for each N).
      seeds: each draws parameters, batches and their augmentation.
      edema: int [N], the risk of macular oedema 0..2, -1 where nobody knows: learned as well. None: grades alone.
    Cross-entropies, weighted so that every grade (every risk) that is drawn counts alike.
    """
    odds = np.asarray(odds, np.float64) / np.sum(odds)
    edema = np.full(len(images), -1) if edema is None else np.asarray(edema)
    weights = _weights(grades, odds, len(GRADES)), _weights(edema, odds, len(EDEMA))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    labels = np.asarray(grades, np.int32), edema.astype(np.int32)
    return _train(
        budget, bool((edema >= 0).any()), shrunk(images, budget.side), labels, np.float32(odds), weights, keys
    )


def _weights(labels, odds, classes) -> np.ndarray:
    """float32 [classes + 1]: of each label, so that those drawn count alike; the last, of an unknown one (-1), is 0."""
    known = labels >= 0
    drawn = np.bincount(labels[known], weights=odds[known], minlength=classes)
    weights = np.where(drawn > 0, 1 / np.maximum(drawn, 1e-12) / max(1, np.count_nonzero(drawn)), 0)
    return np.float32([*weights, 0])


def read(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """uint8 [N, R, R, C] -> the probability of each grade by each seed's grader, float32 [seeds, N, 5]."""
    return _in_batches(_grades, params, shrunk(images, budget.side))


def read_edema(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """uint8 [N, R, R, C] -> the probability of each oedema risk, float32 [seeds, N, 3]; they must have learned it."""
    return _in_batches(_edema, params, shrunk(images, budget.side))


def features(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """uint8 [N, R, R, C] -> what the first seed's grader makes its logits of: float32 [N, D]."""
    return _in_batches(_features, params, shrunk(images, budget.side))[0]


def shrunk(images: np.ndarray, most: int) -> np.ndarray:
    """uint8 [N, R, R, C] -> the same at no more than `most` pixels a side, by means over squares."""
    images = np.asarray(images)
    factor = -(-images.shape[1] // most)
    if factor == 1:
        return images
    side = images.shape[1] // factor
    out = np.empty((len(images), side, side, images.shape[3]), np.uint8)
    for i, image in enumerate(images):  # one by one: as floats a split of large photographs fills a memory
        squares = image[: side * factor, : side * factor].reshape(side, factor, side, factor, -1)
        out[i] = np.rint(squares.mean((1, 3)))
    return out


def _in_batches(of, params, images) -> np.ndarray:
    images_first = lambda part: np.moveaxis(np.asarray(of(params, part)), 1, 0)
    return np.moveaxis(map_in_batches(images_first, images, batch_size=AT_ONCE), 0, 1)


def _of_each_seed(read):
    """read(grader module, images) -> a jitted function of the seeds' parameters and uint8 images."""

    def of(params, images):
        edema = params["logits"]["kernel"].shape[-1] > len(GRADES)
        made = network(*images.shape[2:], edema=edema)
        return jax.lax.map(lambda one: made.eval(one, {}, to_float(images), method=read), params)

    return jax.jit(of)


_grades = _of_each_seed(lambda grader, x: jax.nn.softmax(grader(x)[:, : len(GRADES)]))
_edema = _of_each_seed(lambda grader, x: jax.nn.softmax(grader(x)[:, len(GRADES) :]))
_features = _of_each_seed(lambda grader, x: grader.features(x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(budget: Budget, with_edema: bool, images, labels, odds, weights, keys) -> Tree:
    grader = network(*images.shape[2:], edema=with_edema)
    schedule = optax.cosine_decay_schedule(budget.learning_rate, budget.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=budget.weight_decay))
    upto = jnp.cumsum(odds)

    def objective(params, x, grades, edema):
        logits, _ = grader.train(params, {}, x)
        of = lambda logits, y, w: (
            w[y] * optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        ).mean()
        loss = of(logits[:, : len(GRADES)], grades, weights[0])
        return loss + of(logits[:, len(GRADES) :], edema, weights[1]) if with_edema else loss

    def one_seed(key):
        params, _ = grader.init(jax.random.fold_in(key, budget.steps))

        def update(carry, step):
            params, opt = carry
            draw, change = jax.random.split(jax.random.fold_in(key, step))
            at = jax.random.uniform(draw, (budget.batch_size,)) * upto[-1]
            index = jnp.searchsorted(upto, at, side="right").clip(0, len(odds) - 1)
            x = augment(change, to_float(images[index]))
            gradients = jax.grad(objective)(params, x, *(label[index] for label in labels))
            updates, opt = tx.update(gradients, opt, params)
            return (optax.apply_updates(params, updates), opt), None

        (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), jnp.arange(budget.steps))
        return params

    return jax.vmap(one_seed)(keys)


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
