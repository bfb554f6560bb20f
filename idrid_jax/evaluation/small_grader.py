"""The small grader: a residual network that is trained here, in a minute or two, to read the grade of a photograph.

Three questions use it: `grading` (does it read the requested grade in a generated image?), `usefulness` (does it read
better when it is also trained on generated images?) and `closeness` (its features, next to those of pretrained
networks). This file holds the network, its training over several seeds, reading, and a cache of trained graders.

It is weak: at 32 pixels its kappa on new photographs is low. Still, its features order photographs, generated images, a
repeated mean image and noise correctly.
"""

import dataclasses
import functools
import hashlib
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.scipy.ndimage import map_coordinates

from idrid_jax.batching import map_in_batches
from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.evaluation.downsample import block_means
from idrid_jax.evaluation.features import feature_cache
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.images import to_float
from idrid_jax.models.functional import Functional, Tree, functional
from idrid_jax.models.initializers import variance_scaled
from idrid_jax.models.layers import Conv

NAME = "dr-grader-v1"  # part of the cache's key: another architecture or way of training needs another name
FILE = "parameters.npz"
BATCH = 128  # images read at a time
GROUPS = 8
HE = variance_scaled(math.sqrt(2), truncated=True)  # He initialization, as in Keras and Flax


@dataclasses.dataclass(frozen=True)
class Budget:
    """Hyperparameters of one training, the same whatever the training data."""

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3  # of AdamW, cosine decay to 0
    weight_decay: float = 1e-2
    max_side: int = 64  # pixels; larger images are downsampled, because at 128 a training takes minutes on two cores


def default_budget(num_images: int) -> Budget:
    """Return the budget of a grader of so many photographs: two updates per photograph, between 100 and 400. More would
    only memorize them."""
    return Budget(steps=min(Budget.steps, max(100, 2 * num_images)))


# --- the network


class Block(nnx.Module):
    """Pre-activation residual block, [N, H, W, I] -> [N, H, W, O].

    Sources: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; GroupNorm, which has no running
    statistics and does not depend on how a batch mixes real and synthetic images: Wu and He, ECCV 2018.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        convolution = dict(bias=False, init=HE, dtype=jnp.float32, rngs=rngs)
        self.norm1 = nnx.GroupNorm(inputs, num_groups=GROUPS, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, 3, 1, (1, 1), **convolution)
        self.norm2 = nnx.GroupNorm(outputs, num_groups=GROUPS, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, 3, 1, (1, 1), **convolution)
        self.shortcut = Conv(inputs, outputs, 1, 1, (0, 0), **convolution) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


class SmallGrader(nnx.Module):
    """Images [N, R, R, C] in [-1, 1], R at least 14 -> logits [N, outputs].

    One block per level; average pooling halves the sides between levels down to 7 or 8 pixels; the channels start at
    `width` and double at each level, up to four times `width`.
    """

    def __init__(self, size: int, channels: int, outputs: int, width: int = 16, *, rngs: nnx.Rngs):
        levels = max(1, round(math.log2(size / 7.5)))
        widths = [width * min(4, 2**level) for level in range(levels + 1)]
        self.stem = Conv(channels, width, 3, 1, (1, 1), bias=False, init=HE, dtype=jnp.float32, rngs=rngs)
        self.blocks = nnx.List([Block(i, o, rngs=rngs) for i, o in zip([width, *widths], widths)])
        self.norm = nnx.GroupNorm(widths[-1], num_groups=GROUPS, rngs=rngs)
        self.logits = nnx.Linear(widths[-1], outputs, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Return the input of the last layer, [N, 4 * width]: the mean over the positions of the last level."""
        x = self.stem(images)
        for level, block in enumerate(self.blocks):
            x = block(nnx.avg_pool(x, (2, 2), (2, 2)) if level else x)
        return nnx.relu(self.norm(x)).mean(axis=(1, 2))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.logits(self.features(images))


def network(size: int, channels: int, *, edema: bool = False) -> Functional:
    """Return the network; its logits are those of the grades, then with `edema` those of the macular edema risk."""
    outputs = len(GRADES) + (len(EDEMA) if edema else 0)
    return functional(functools.partial(SmallGrader, size, channels, outputs))


# --- training


def train(
    images: np.ndarray,
    grades: np.ndarray,
    sampling_weights: np.ndarray,
    *,
    seeds: Sequence[int],
    edema: np.ndarray | None = None,
    budget: Budget = Budget(),
) -> Tree:
    """Train one grader per seed and return their parameters, each array with a leading axis for the seeds.

    Args:
      images: uint8 [N, R, R, C]. grades: int [N] in 0..4.
      sampling_weights: float [N]; images are sampled in proportion to these. An image of weight 0 is never seen: it is
        there to keep N, and with it the compiled program, the same.
      seeds: each determines the initial parameters, the batches and their augmentation.
      edema: int [N], macular edema risk 0..2, -1 if unknown, learned as a second output. None: grades only.
    The loss is cross-entropy, weighted so that every sampled grade (and every risk) has the same total weight.
    """
    probabilities = np.asarray(sampling_weights, np.float64) / np.sum(sampling_weights)
    edema = np.full(len(images), -1) if edema is None else np.asarray(edema)
    class_weights = (
        _class_weights(grades, probabilities, len(GRADES)),
        _class_weights(edema, probabilities, len(EDEMA)),
    )
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    labels = np.asarray(grades, np.int32), edema.astype(np.int32)
    images, with_edema = at_most(images, budget.max_side), bool((edema >= 0).any())
    return _train(budget, with_edema, images, labels, np.float32(probabilities), class_weights, keys)


def _class_weights(labels, probabilities, classes) -> np.ndarray:
    """Return the loss weight of each class, float32 [classes + 1]: inverse to how often it is sampled. The last entry,
    that of the unknown label -1, is 0."""
    known = labels >= 0
    sampled = np.bincount(labels[known], weights=probabilities[known], minlength=classes)
    weights = np.where(sampled > 0, 1 / np.maximum(sampled, 1e-12) / max(1, np.count_nonzero(sampled)), 0)
    return np.float32([*weights, 0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(budget: Budget, with_edema: bool, images, labels, probabilities, class_weights, keys) -> Tree:
    grader = network(*images.shape[2:], edema=with_edema)
    schedule = optax.cosine_decay_schedule(budget.learning_rate, budget.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=budget.weight_decay))
    cumulative = jnp.cumsum(probabilities)

    def train_one_seed(key):
        params, _ = grader.init(jax.random.fold_in(key, budget.steps))

        def update(carry, step):
            params, opt = carry
            sample_key, augment_key = jax.random.split(jax.random.fold_in(key, step))
            at = jax.random.uniform(sample_key, (budget.batch_size,)) * cumulative[-1]
            index = jnp.searchsorted(cumulative, at, side="right").clip(0, len(images) - 1)
            x = augment(augment_key, to_float(images[index]))
            gradients = jax.grad(_loss)(params, grader, x, [label[index] for label in labels], class_weights)
            updates, opt = tx.update(gradients, opt, params)
            return (optax.apply_updates(params, updates), opt), None

        (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), jnp.arange(budget.steps))
        return params

    return jax.vmap(train_one_seed)(keys)


def _loss(params, grader, x, labels, class_weights):
    """The cross-entropy of the grades, plus that of the edema risks if the network has these outputs."""
    logits, _ = grader.train(params, {}, x)
    loss, start = 0.0, 0
    for label, weights in zip(labels, class_weights):
        part = logits[:, start : start + len(weights) - 1]
        if part.shape[1]:
            each = optax.softmax_cross_entropy_with_integer_labels(part, jnp.maximum(label, 0))
            loss += (weights[label] * each).mean()
        start += len(weights) - 1
    return loss


def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    """Augment float32 [N, R, R, C] in [-1, 1] by what keeps the grade: mirroring, rotation by any angle about the
    center, brightness and contrast by 10 %. Corners that rotate into view are black (-1), and black stays black."""
    mirror_key, angle_key, brightness_key, contrast_key = jax.random.split(key, 4)
    n, size, _, channels = x.shape
    x = jnp.where(jax.random.bernoulli(mirror_key, 0.5, (n, 1, 1, 1)), x[:, :, ::-1], x)
    angle = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
    x = jax.vmap(jax.vmap(_rotate, in_axes=(2, None), out_axes=2))(x, angle)
    scale = 1 + jax.random.uniform(contrast_key, (n, 1, 1, 1), minval=-0.1, maxval=0.1)
    shift = jax.random.uniform(brightness_key, (n, 1, 1, 1), minval=-0.1, maxval=0.1)
    return jnp.where(x > -0.95, (x * scale + shift).clip(-1, 1), x)


def _rotate(image, angle):
    """Rotate one channel, [R, R], about its center by an angle in radians, with bilinear interpolation."""
    center = (len(image) - 1) / 2
    row, column = jnp.meshgrid(*(jnp.arange(len(image)) - center,) * 2, indexing="ij")
    source = (
        jnp.cos(angle) * row - jnp.sin(angle) * column + center,
        jnp.sin(angle) * row + jnp.cos(angle) * column + center,
    )
    return map_coordinates(image, source, order=1, mode="constant", cval=-1.0)


# --- reading


def read(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """Return the probabilities of the grades by each seed's grader, float32 [seeds, N, 5], of uint8 [N, R, R, C]."""
    return _in_batches(_grades, params, at_most(images, budget.max_side))


def read_edema(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """Return probabilities of the macular edema risks, float32 [seeds, N, 3]; the graders must have learned them."""
    return _in_batches(_edema, params, at_most(images, budget.max_side))


def features(params: Tree, images: np.ndarray, *, budget: Budget = Budget()) -> np.ndarray:
    """Return the features of the first seed's grader, float32 [N, D], of uint8 [N, R, R, C]."""
    return _in_batches(_features, params, at_most(images, budget.max_side))[0]


def likelihood(params: Tree, images: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Return the first grader's probability of the given grade of each image, float32 [N]."""
    return read(params, images)[0][np.arange(len(images)), grades]


def at_most(images: np.ndarray, max_side: int) -> np.ndarray:
    """Return uint8 [N, R, R, C] downsampled to at most `max_side` pixels a side, by the mean over squares."""
    images = np.asarray(images)
    factor = -(-images.shape[1] // max_side)
    return images if factor == 1 else np.rint(block_means(images, factor)).astype(np.uint8)


def _in_batches(output, params, images) -> np.ndarray:
    images_first = lambda batch: np.moveaxis(np.asarray(output(params, batch)), 1, 0)
    return np.moveaxis(map_in_batches(images_first, images, batch_size=BATCH), 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def _output(method, params, images):
    """Return method(grader, images) of each seed's grader: [seeds, N, ...]."""
    edema = params["logits"]["kernel"].shape[-1] > len(GRADES)
    grader = network(*images.shape[2:], edema=edema)
    return jax.lax.map(lambda one: grader.eval(one, {}, to_float(images), method=method), params)


_grades = functools.partial(_output, lambda grader, x: jax.nn.softmax(grader(x)[:, : len(GRADES)]))
_edema = functools.partial(_output, lambda grader, x: jax.nn.softmax(grader(x)[:, len(GRADES) :]))
_features = functools.partial(_output, SmallGrader.features)


# --- cache


def cached_grader(
    images: np.ndarray,
    grades: np.ndarray,
    cache_dir: Path | str,
    *,
    budget: Budget | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[FeatureExtractor, Tree]:
    """Return the feature extractor and the parameters (of seed 0) of a grader of these photographs; train it if
    `cache_dir` does not hold it.

    images, grades: uint8 [N, R, R, C] and int [N], the photographs that the generator is trained on, never those that
    it is compared with. cache_dir: nothing is cached if it cannot be written. budget: None: `default_budget`. log:
    receives a line before a training.
    """
    budget = budget or default_budget(len(images))
    images = at_most(images, budget.max_side)
    digest = hashlib.sha256(f"{NAME}|{budget}|{images.shape}|{np.asarray(grades).tolist()}|".encode())
    digest.update(np.ascontiguousarray(images).data)
    key = digest.hexdigest()[:32]
    params = _read_parameters(Path(cache_dir) / key / FILE, images.shape)
    if params is None:
        log(f"training the small grader, once for these {len(images)} photographs")
        params = train(images, grades, np.ones(len(images)), seeds=[0], budget=budget)
        arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
        feature_cache.write_entry(Path(cache_dir) / key, lambda entry: np.savez(entry / FILE, **arrays))
    name = f"{NAME}-{key[:8]} (trained on the training photographs)"
    return FeatureExtractor(name, functools.partial(features, params, budget=budget)), params


def _read_parameters(path: Path, shape) -> Tree | None:
    """Return the parameters in a file, None if it is not there, is damaged or holds other shapes."""
    like = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], network(*shape[2:]).init(jax.random.key(0))[0]))
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[str(i)] for i in range(len(leaves))]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    fits = all(a.shape == x.shape and a.dtype == x.dtype and np.isfinite(a).all() for a, x in zip(arrays, leaves))
    return jax.tree.unflatten(structure, arrays) if fits else None
