"""Features of a grader that learned the grades of a release's training photographs; trained once and kept.

It looks where the grade is written: at 32 pixels its kappa on new photographs is low, and yet its features tell
photographs from generated images, a repeated mean image and noise, in this order.
"""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from idrid_jax.evaluation import grader
from idrid_jax.evaluation.features import feature_cache
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.models.functional import Tree

NAME = "dr-grader-v1"  # another architecture or way of training is another name: what is kept is keyed by it
FILE = "parameters.npz"
LEAST_STEPS = 100


def train(
    images: np.ndarray,
    grades: np.ndarray,
    folder: Path | str,
    *,
    budget: grader.Budget | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[FeatureExtractor, Tree]:
    """The features, and the parameters (of one seed, as `grader.train` gives them), of a grader of these photographs.

    images, grades: uint8 [N, R, R, C] and int [N], photographs that the generator is trained on, never those it is
    judged by. folder: where graders are kept; one that cannot be written is done without. budget: None: that of
    `grader`, but for few photographs two updates for each, at least LEAST_STEPS: more would only learn these by
    heart. tell: is told where one has to be trained first.
    """
    usual = grader.Budget()
    budget = budget or dataclasses.replace(usual, steps=min(usual.steps, max(LEAST_STEPS, 2 * len(images))))
    images = grader.shrunk(images, budget.side)
    digest = hashlib.sha256(f"{NAME}|{budget}|{images.shape}|{np.asarray(grades).tolist()}|".encode())
    digest.update(np.ascontiguousarray(images).data)
    key = digest.hexdigest()[:32]
    params = _read(Path(folder) / key / FILE, images.shape)
    if params is None:
        tell(f"training the grader whose features measure: once for these {len(images)} photographs")
        params = grader.train(images, grades, np.ones(len(images)), seeds=[0], budget=budget)
        arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
        feature_cache.write_entry(Path(folder) / key, lambda entry: np.savez(entry / FILE, **arrays))
    name = f"{NAME}-{key[:8]} (trained on the training photographs)"
    return FeatureExtractor(name, partial(grader.features, params, budget=budget)), params


def likelihood(params: Tree, images: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """uint8 [N, R, R, C] and the grades [N] they were asked for -> the probability of these, float32 [N]."""
    return grader.read(params, images)[0][np.arange(len(images)), grades]


def _like(shape):
    """The parameters' structure."""
    init = lambda: grader.network(*shape[2:]).init(jax.random.key(0))[0]
    return jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], init()))


def _read(path: Path, shape) -> Tree | None:
    leaves, structure = jax.tree.flatten(_like(shape))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[str(i)] for i in range(len(leaves))]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    fits = all(a.shape == x.shape and a.dtype == x.dtype and np.isfinite(a).all() for a, x in zip(arrays, leaves))
    return jax.tree.unflatten(structure, arrays) if fits else None
