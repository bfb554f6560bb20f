"""Repeated stratified cross-validation of a classifier on the training split, in which copies stay together."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.batching import map_in_threads
from idrid_jax.data.folds import assign_folds
from idrid_jax.evaluation.graders import classifiers
from idrid_jax.evaluation.graders.classifiers import Classifier
from idrid_jax.evaluation.graders.metrics import confusion, quadratic_kappa, read_classes


def repeated_folds(
    labels: np.ndarray, groups: Sequence[Sequence[int]], *, num_folds: int, repeats: int, seed: int
) -> np.ndarray:
    """Return the fold of each photograph in each repeat, int [repeats, N]; arguments and errors as `assign_folds`."""
    return np.stack([assign_folds(labels, groups, num_folds, seed + repeat) for repeat in range(repeats)])


def out_of_fold(
    classifier: Classifier,
    setting: dict,
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    seed: int,
) -> np.ndarray:
    """Return class probabilities of each photograph by a classifier that was fitted without its fold.

    Args: features: float [S, N, D], see `classifiers`. labels: int [N]. folds: int [R, N], see `repeated_folds`.
    Returns: float64 [R, N, num_classes]. The fits run in threads; their order does not matter.
    """

    def predict(repeat, number):
        held_out = folds[repeat] == number
        model = classifiers.fit(classifier, setting, features[:, ~held_out], labels[~held_out], seed=seed)
        return repeat, held_out, classifiers.probabilities(model, features[:, held_out], num_classes)

    jobs = ((repeat, number) for repeat in range(len(folds)) for number in np.unique(folds[repeat]))
    result = np.empty((*folds.shape, num_classes))
    for repeat, held_out, probabilities in map_in_threads(predict, jobs):
        result[repeat, held_out] = probabilities
    return result


def choose_setting(
    classifier: Classifier,
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    seed: int,
) -> tuple[dict, np.ndarray]:
    """Return the setting of the grid with the highest mean kappa over repeats, and its `out_of_fold` probabilities.

    The kappa of the chosen setting is a little optimistic, because the same folds chose it. Of equal ones, the first.
    """
    candidates = []
    for setting in classifier.grid:
        probabilities = out_of_fold(classifier, setting, features, labels, folds, num_classes, seed=seed)
        kappa = quadratic_kappa(confusion(labels, read_classes(probabilities), num_classes)).mean()
        candidates.append((kappa, setting, probabilities))
    _, setting, probabilities = max(candidates, key=lambda candidate: candidate[0])
    return setting, probabilities
