"""Measures of a grader: confusion matrix, quadratic weighted kappa, recall, AUC, and their intervals. NumPy; pure.

A confusion matrix is int [..., G, G], a row for each true (or requested) grade, a column for each grade that is read.
The measures of it work over any leading axes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from idrid_jax.evaluation import intervals

RESAMPLES = 1000
REFERABLE = 2  # the lowest referable grade: moderate retinopathy


def confusion(truth: np.ndarray, read: np.ndarray, grades: int) -> np.ndarray:
    """Return the confusion matrix, int [..., grades, grades], of int [..., N] in 0..grades-1."""
    truth, read = np.broadcast_arrays(truth, read)
    lead = truth.shape[:-1]
    which = np.arange(int(np.prod(lead)))[:, None] * grades**2
    cells = which + truth.reshape(-1, truth.shape[-1]) * grades + read.reshape(-1, read.shape[-1])
    counts = np.bincount(cells.ravel(), minlength=len(which) * grades**2)
    return counts.reshape(*lead, grades, grades)


def quadratic_kappa(matrix: np.ndarray) -> np.ndarray:
    """Return the quadratic weighted kappa (QWK) of [..., G, G]: float64 [...].

    1 - sum(w O) / sum(w E), w = (i - j)^2, O the counts and E those expected by chance from the margins: 1 is
    agreement, 0 is chance. The metric of the diabetic retinopathy challenges. 0 if truth and reading hold the same
    single grade. Source: Cohen, "Weighted kappa", Psychological Bulletin 70(4), 1968.
    """
    matrix = np.asarray(matrix, np.float64)
    grades = matrix.shape[-1]
    weights = (np.arange(grades)[:, None] - np.arange(grades)) ** 2
    rows, columns = matrix.sum(-1), matrix.sum(-2)
    by_chance = rows[..., :, None] * columns[..., None, :] / np.maximum(rows.sum(-1), 1)[..., None, None]
    observed, expected = (weights * matrix).sum((-2, -1)), (weights * by_chance).sum((-2, -1))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), 0.0)


def recall(matrix: np.ndarray) -> np.ndarray:
    """Return the recall of each grade of [..., G, G]: float64 [..., G]; NaN for a grade without images."""
    matrix = np.asarray(matrix, np.float64)
    rows = matrix.sum(-1)
    return np.where(rows > 0, np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(rows, 1), np.nan)


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return the mean recall over the grades that have images, of [..., G, G]: float64 [...]."""
    each = recall(matrix)
    there = ~np.isnan(each)
    return np.where(there, each, 0).sum(-1) / np.maximum(there.sum(-1), 1)


def auc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of scores [..., N] for bool [..., N]: float64 [...].

    The probability that a positive one scores above a negative one, equal ones counting half, by ranks (Hanley and
    McNeil, Radiology 143(1), 1982). NaN if all or none are positive.
    """
    scores, positive = np.broadcast_arrays(scores, positive)
    count = positive.sum(-1)
    pairs = count * (positive.shape[-1] - count)
    above = (rankdata(scores, axis=-1) * positive).sum(-1) - count * (count + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


# --- all measures of one grader, for json.dumps


def read_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the class that is read from probabilities [..., G]: int [...], the median of the distribution.

    The median minimizes the expected distance to the true grade, where the likeliest class ignores that grades are
    ordered. A photograph is then read as referable exactly if the referable grades have more than half of the
    probability. Source: Berger, "Statistical decision theory and Bayesian analysis", 1985, section 2.4.2.
    """
    below = np.cumsum(probabilities, axis=-1)[..., :-1]  # P(class <= k), below the last class
    return (below < 0.5).sum(-1)


def measure_classes(truth: np.ndarray, probabilities: np.ndarray, names: Sequence, *, seed: int = 0) -> dict:
    """Compare a grader's readings with the truth.

    Args:
      truth: int [N] in 0..G-1.
      probabilities: float [R, N, G], by R repeats of a cross-validation; R = 1 for one grader.
      names: of the G classes. seed: of the bootstrap.
    Returns: {"photographs", "qwk", "qwk_interval", "balanced_accuracy", "balanced_accuracy_interval", "auc" (one class
      against the others) and "recall" {class: a number, or None for one that is not in `truth`}, "confusion"}. Every
      number is the mean over repeats; intervals are of 95 %, over photographs, the same resample for every repeat.
    """
    read = read_classes(probabilities)
    matrices = confusion(truth, read, len(names))
    which = _resamples(len(truth), seed)
    resampled = confusion(truth[which], read[:, which], len(names))  # [R, resamples, G, G]
    result = {"photographs": len(truth)}
    for name, function in (("qwk", quadratic_kappa), ("balanced_accuracy", balanced_accuracy)):
        result[name] = float(function(matrices).mean())
        result[f"{name}_interval"] = intervals.percentile_interval(function(resampled).mean(0))
    areas = [auc(probabilities[..., label], truth == label).mean() for label in range(len(names))]
    result["auc"] = _by_name(names, areas)
    result["recall"] = _by_name(names, recall(matrices).mean(0))
    return result | {"confusion": matrices.mean(0).tolist()}


def measure_referable(truth: np.ndarray, probabilities: np.ndarray, *, seed: int = 0) -> dict:
    """Compare readings of referable retinopathy, grade 2 or more, with the truth.

    Args: grades int [N] and their probabilities, float [R, N, 5], as `measure_classes`. The score is the total
      probability of the referable grades; more than one half is read as referable.
    Returns: {"photographs", "auc", "auc_interval", "sensitivity", "specificity"}, means over repeats; None where the
      photographs that it needs are missing.
    """
    positive, scores = truth >= REFERABLE, probabilities[..., REFERABLE:].sum(-1)
    which = _resamples(len(truth), seed)
    read = read_classes(probabilities) >= REFERABLE
    share = lambda values: float(values.mean()) if values.size else None
    return {
        "photographs": len(truth),
        "auc": _number(auc(scores, positive).mean()),
        "auc_interval": intervals.percentile_interval(auc(scores[:, which], positive[which]).mean(0)),
        "sensitivity": share(read[:, positive]),
        "specificity": share(~read[:, ~positive]),
    }


def _resamples(count, seed):
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def _by_name(names, values):
    return {str(name): _number(value) for name, value in zip(names, values)}


def _number(value):
    return None if np.isnan(value) else float(value)
