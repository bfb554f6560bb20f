"""How well grades are read: confusion, quadratic weighted kappa, recall. NumPy, pure; over any leading axes.

A confusion matrix is int [..., G, G], a row for each true grade, a column for each grade read.
"""

import numpy as np


def confusion(truth: np.ndarray, read: np.ndarray, grades: int) -> np.ndarray:
    """truth, read int [..., N] in 0..grades-1 -> int [..., grades, grades]."""
    truth, read = np.broadcast_arrays(truth, read)
    lead = truth.shape[:-1]
    which = np.arange(int(np.prod(lead)))[:, None] * grades**2
    cells = which + truth.reshape(-1, truth.shape[-1]) * grades + read.reshape(-1, read.shape[-1])
    counts = np.bincount(cells.ravel(), minlength=len(which) * grades**2)
    return counts.reshape(*lead, grades, grades)


def quadratic_kappa(matrix: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen, "Weighted kappa", Psychological Bulletin 70(4), 1968), the measure
    of the diabetic retinopathy challenges: 1 is agreement, 0 what chance gives. [..., G, G] -> float64 [...].

    0 where both truth and reading hold one and the same grade alone: nothing can be told.
    """
    matrix = np.asarray(matrix, np.float64)
    grades = matrix.shape[-1]
    weights = (np.arange(grades)[:, None] - np.arange(grades)) ** 2
    rows, columns = matrix.sum(-1), matrix.sum(-2)
    by_chance = rows[..., :, None] * columns[..., None, :] / np.maximum(rows.sum(-1), 1)[..., None, None]
    seen, expected = (weights * matrix).sum((-2, -1)), (weights * by_chance).sum((-2, -1))
    return np.where(expected > 0, 1 - seen / np.where(expected > 0, expected, 1), 0.0)


def recall(matrix: np.ndarray) -> np.ndarray:
    """Of each true grade the share that is read so: [..., G, G] -> float64 [..., G]; NaN for a grade without images."""
    matrix = np.asarray(matrix, np.float64)
    rows = matrix.sum(-1)
    return np.where(rows > 0, np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(rows, 1), np.nan)


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """The mean recall of the grades that have images: [..., G, G] -> float64 [...]."""
    each = recall(matrix)
    there = ~np.isnan(each)
    return np.where(there, each, 0).sum(-1) / np.maximum(there.sum(-1), 1)
