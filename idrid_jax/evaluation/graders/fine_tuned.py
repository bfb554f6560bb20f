"""A fine-tuned grader: the last blocks of EfficientNet-Lite0 and two linear heads, in Flax.

The heads read the grade and the macular edema risk by ordinal regression, as `classifiers.OrdinalRegression` does. They
come first: fitted to the frozen features, they are where training starts. Then they and the last blocks are trained on
augmented photographs, with balanced grades. Source: Kumar et al., "Fine-tuning can distort pretrained features and
underperform out-of-distribution", ICLR 2022, section 3 (a linear probe, then fine-tuning).

The first blocks stay as they are. So their activations are computed once for a few variants of each photograph, and all
models share them: those of the folds and those of the seeds, which one compiled program trains.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from idrid_jax.batching import map_in_batches
from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.evaluation.features import efficientnet, resize
from idrid_jax.evaluation.graders import classifiers
from idrid_jax.evaluation.graders.augmentation import augmented
from idrid_jax.models.functional import Functional, functional

NAME = "fine_tuned"  # of the classifier, in rows of `grade`
CLASSES = {"grade": len(GRADES), "edema": len(EDEMA)}  # of each head
SETTING = {"epochs": 12, "rate": 1e-4}  # the learning rate at its peak, see `_optimizer`
CERTAIN = 100.0  # a logit: its probability is 0 or 1 in float32
BATCH_SIZE = 32
NUM_SEEDS = 3  # models of all training photographs, whose probabilities are averaged
NUM_AUGMENTED = 6  # variants of a training photograph, besides the plain and the mirrored one

Labels = dict[str, np.ndarray]  # {"grade": int [N] in 0..4, "edema": int [N] in 0..2, -1 if unknown}


class LastBlocks(nnx.Module):
    """Activations float32 [B, 7, 7, 192] -> {"grade": logits [B, 4], "edema": logits [B, 2]}.

    A logit is that of a label above a threshold, as `classifiers.ordinal_probabilities` takes them. Depthwise kernels
    are not trained: they hold 4 % of the parameters, and on a CPU their gradients take as long as all others.
    """

    def __init__(self, pretrained: dict, *, rngs: nnx.Rngs):
        """pretrained: parameters of the last blocks, as `efficientnet.split_params` returns them."""
        width = efficientnet.FEATURES
        self.convolutions = nnx.Dict({name: _Convolution(*arrays) for name, arrays in pretrained.items()})
        self.heads = nnx.Dict({name: nnx.Linear(width, n - 1, rngs=rngs) for name, n in CLASSES.items()})

    def features(self, activations):
        """Return pooled features, float32 [B, 1280]."""
        params = {name: (conv.kernel[...], conv.bias[...]) for name, conv in self.convolutions.items()}
        frozen = {name: value for name, value in params.items() if name.endswith("_depthwise_conv")}
        return efficientnet.last_blocks(params | jax.lax.stop_gradient(frozen), activations)

    def __call__(self, activations):
        features = self.features(activations)
        return {name: head(features) for name, head in self.heads.items()}


class _Convolution(nnx.Module):
    def __init__(self, kernel, bias):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)


@dataclasses.dataclass(frozen=True)
class Network:
    """EfficientNet-Lite0 with pretrained parameters. first: of the blocks that stay as they are. last: the others."""

    first: dict
    last: Functional

    @classmethod
    def from_params(cls, params: dict) -> "Network":
        """params: as `efficientnet.convert` returns them."""
        first, last = efficientnet.split_params(params)
        return cls(jax.device_put(first), functional(functools.partial(LastBlocks, last)))

    def sides(self, images: np.ndarray) -> np.ndarray:
        """Return activations of photographs uint8 [N, H, W, C] and their mirror images: float16 [2, N, 7, 7, 192]."""
        return np.stack([self.activations(side) for side in (images, np.ascontiguousarray(images[:, :, ::-1]))])

    def activations(self, images: np.ndarray) -> np.ndarray:
        """Return activations of the first blocks, float16 [N, 7, 7, 192], of images uint8 [N, H, W, C]."""

        def batch(some):
            resized = resize.pillow(some, efficientnet.SIZE, Image.Resampling.BICUBIC)
            return efficientnet.first_blocks(self.first, resized).astype(jnp.float16)

        return map_in_batches(batch, images, batch_size=BATCH_SIZE)


def training_activations(network: Network, images: np.ndarray, seed: int) -> np.ndarray:
    """Return activations float16 [V, N, 7, 7, 192] of the variants of training photographs uint8 [N, H, W, C].

    The first two variants are the plain and the mirrored photographs, the others are augmented by `seed`.
    """
    seeds = range(seed, seed + NUM_AUGMENTED)
    others = [network.activations(augmented(images, one, min_size=efficientnet.SIZE)) for one in seeds]
    return np.concatenate([network.sides(images), np.stack(others)])


def train_folds_and_seeds(
    network: Network, activations: np.ndarray, labels: Labels, folds: np.ndarray, seed: int
) -> tuple[list[dict], list[dict]]:
    """Train a model without each fold, and `NUM_SEEDS` models of all photographs, and return their parameters.

    folds: int [N], 0 to the number of folds - 1. Other arguments as of `train`.
    """
    num_folds = int(folds.max()) + 1
    used = [folds != fold for fold in range(num_folds)] + NUM_SEEDS * [np.ones(len(folds), bool)]
    models = train(network, activations, labels, np.stack(used), seed + np.arange(len(used)))
    return models[:num_folds], models[num_folds:]


def out_of_fold(network: Network, models: list[dict], sides: np.ndarray, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Read each photograph by the model that was trained without its fold; returns as `probabilities` does."""
    result = {name: np.empty((len(folds), classes)) for name, classes in CLASSES.items()}
    for fold, params in enumerate(models):
        for name, found in probabilities(network, params, sides[:, folds == fold]).items():
            result[name][folds == fold] = found
    return result


def mean_probabilities(network: Network, models: list[dict], sides: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of what `probabilities` returns over the models."""
    each = [probabilities(network, params, sides) for params in models]
    return {name: np.mean([found[name] for found in each], axis=0) for name in CLASSES}


def train(network: Network, activations: np.ndarray, labels: Labels, used: np.ndarray, seeds: np.ndarray) -> list[dict]:
    """Train a model for each row of `used` and return their parameters.

    Args:
      activations: [V, N, ...] as `training_activations` returns them. labels: of the N photographs.
      used: bool [M, N], the photographs that each model is trained on, of at least two grades.
      seeds: int [M], of the order of each model's photographs.
    """
    features = _features(network, activations[:2])
    start = [_start(network, features, labels, mask) for mask in used]
    batches = [_batches(len(activations), labels["grade"], mask, seed) for mask, seed in zip(used, seeds)]
    weights = [_threshold_weights(labels, mask) for mask in used]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *zip(start, batches, weights))
    shared = jax.device_put(activations), jax.tree.map(jnp.asarray, labels)
    trained = jax.device_get(_train_all(network.last, *shared, *stacked))
    return [jax.tree.map(lambda x, model=model: x[model], trained) for model in range(len(used))]


def probabilities(network: Network, params: dict, sides: np.ndarray) -> dict[str, np.ndarray]:
    """Read photographs by one model, from the activations [2, n, 7, 7, 192] of `Network.sides`.

    Returns {"grade": float64 [n, 5], "edema": [n, 3]}, means over the sides.
    """
    logits = [_in_batches(functools.partial(_logits, network.last, params), side) for side in sides]
    ends = np.cumsum([classes - 1 for classes in CLASSES.values()])[:-1]
    heads = zip(CLASSES, zip(*(np.split(side, ends, axis=1) for side in logits)))
    return {name: np.mean([classifiers.ordinal_probabilities(side) for side in both], axis=0) for name, both in heads}


def _in_batches(function, activations):
    return map_in_batches(function, activations, batch_size=BATCH_SIZE)


@functools.partial(jax.jit, static_argnums=0)
def _logits(last, params, activations):
    """Return the logits of both heads side by side, float32 [B, 4 + 2]."""
    found = last.eval(params, {}, activations.astype(jnp.float32))
    return jnp.concatenate([found[name] for name in CLASSES], axis=-1)  # not in the module's order, which is sorted


# --- the start: heads fitted to frozen features


def _features(network, sides) -> np.ndarray:
    """Return the pooled features of the pretrained network, float32 [2, N, 1280]."""
    params = network.last.init(jax.random.key(0))[0]

    @jax.jit
    def batch(activations):
        return network.last.eval(params, {}, activations.astype(jnp.float32), method=LastBlocks.features)

    return np.stack([_in_batches(batch, side) for side in sides])


def _start(network, features, labels, used) -> dict:
    """Return pretrained parameters and heads that are fitted to the features of the photographs `used`."""
    params = jax.device_get(network.last.init(jax.random.key(0))[0])
    for name in CLASSES:
        known = used & (labels[name] >= 0)
        params["heads"][name] = _head(features[:, known], labels[name][known], CLASSES[name])
    return params


def _head(features, labels, classes) -> dict[str, np.ndarray]:
    """Return kernel and bias of an ordinal regression; with labels on one side only, a logit is constant."""
    kernel, bias = np.zeros((features.shape[-1], classes - 1)), np.full(classes - 1, -CERTAIN)
    present = np.unique(labels)
    if len(present):
        bias[: present[0]] = CERTAIN
    if len(present) > 1:
        model = classifiers.fit(
            classifiers.CLASSIFIERS["ordinal_regression"], {"C": classifiers.ORDINAL_C}, features, labels, seed=0
        )
        scaler, linear = model[0], model[-1]
        coefficients = linear.coef_ / scaler.scale_
        intercepts = linear.intercept_ - coefficients @ scaler.mean_
        for threshold in range(present[0], present[-1]):  # an absent label has the threshold of the one below
            row = np.searchsorted(present, threshold, side="right") - 1
            kernel[:, threshold], bias[threshold] = coefficients[row], intercepts[row]
    return {"kernel": np.float32(kernel), "bias": np.float32(bias)}


# --- training


def _batches(num_variants, grades, used, seed) -> tuple[np.ndarray, np.ndarray]:
    """Return the variants and the photographs of every batch, int32 [steps, BATCH_SIZE]: each grade as often.

    The number of steps is that of `SETTING["epochs"]` over all photographs, so that it is the same for all models.
    """
    random, shape = np.random.default_rng(seed), (_num_steps(grades), BATCH_SIZE)
    photographs = np.flatnonzero(used)
    share = 1 / np.bincount(grades[photographs])[grades[photographs]]
    chosen = random.choice(photographs, size=shape, p=share / share.sum())
    return random.integers(num_variants, size=shape, dtype=np.int32), chosen.astype(np.int32)


def _num_steps(grades):
    return max(10, SETTING["epochs"] * len(grades) // BATCH_SIZE)


def _threshold_weights(labels, used) -> dict[str, np.ndarray]:
    """Return weights of labels below and above each threshold, {head: float32 [2, thresholds]}.

    With them both sides of a threshold have the same total weight in balanced batches, as in the heads' first fit.
    """
    grades, weights = labels["grade"], {}
    share = used / np.bincount(grades[used], minlength=len(GRADES)).clip(1)[grades]
    for name, classes in CLASSES.items():
        above = labels[name][:, None] > np.arange(classes - 1)
        known = share * (labels[name] >= 0)
        total = np.stack([known @ ~above, known @ above])
        balanced = total.sum(axis=0) / np.maximum(2 * total, 1e-9)
        weights[name] = np.float32(np.where(total.min(axis=0) > 0, balanced, 0))  # 0 where one side is empty
    return weights


@functools.partial(jax.jit, static_argnums=0)
def _train_all(last, activations, labels, start, batches, weights):
    """Train the models, whose arrays are stacked along the first axis of `start`, `batches` and `weights`."""
    optimizer = _optimizer(batches[0].shape[1])

    def train_one(model):
        params, batches, weights = model

        def step(carry, batch):
            params, state = carry
            variants, photographs = batch
            x = activations[variants, photographs].astype(jnp.float32)
            y = {name: label[photographs] for name, label in labels.items()}
            gradient = jax.grad(lambda params: _loss(last.eval(params, {}, x), y, weights))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    return jax.lax.map(train_one, (start, batches, weights))  # one after the other: memory is that of one model


def _optimizer(steps) -> optax.GradientTransformation:
    """Adam; the rate rises over a tenth of the steps, then falls to 0 along a cosine."""
    rate = optax.warmup_cosine_decay_schedule(0, SETTING["rate"], steps // 10, steps)
    return optax.adam(rate)


def _loss(logits, labels, weights) -> jax.Array:
    """Return the sum over both heads of the mean weighted cross-entropy of exceeding each threshold."""
    total = 0.0
    for name, found in logits.items():
        above = labels[name][:, None] > jnp.arange(found.shape[-1])
        loss = optax.sigmoid_binary_cross_entropy(found, above.astype(found.dtype))
        known = labels[name][:, None] >= 0
        total = total + jnp.mean(loss * jnp.where(above, weights[name][1], weights[name][0]) * known)
    return total
