"""Grading: does a grader of real photographs read, in generated images, the grades that were requested?

The grader is the `small_grader`, trained on the training photographs. Its kappa on held-out photographs is the
reference: it cannot read more in generated images than it can in photographs. A generator can win by exaggerating what
this grader looks at, so a high kappa is no proof that an ophthalmologist would agree.

A confusion matrix is int [..., G, G], a row for each true (or requested) grade, a column for each grade that is read.
The measures are NumPy functions over any leading axes.
"""

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import intervals

MIN_IMAGES = 10  # of each set


def measure(
    read: np.ndarray,
    requested: np.ndarray,
    read_held_out: np.ndarray,
    held_out_grades: np.ndarray,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """Compare the grades read in generated images with the requested ones, and in held-out photographs with their own.

    Args: int [N], int [N], int [M], int [M] in 0..4.
    Returns: for json.dumps: "generated" and "held_out" {"images", "kappa", "interval" (95 %, over images), "confusion",
      "recall"}, and "verdict"; a set of fewer than `MIN_IMAGES` images is {"missing": why}.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for name, found, truth in (("generated", read, requested), ("held_out", read_held_out, held_out_grades)):
        if len(truth) < MIN_IMAGES:
            result[name] = {
                "missing": f"{len(truth)} {name.replace('_', '-')} images; at least {MIN_IMAGES} are needed"
            }
            continue
        matrix = confusion(truth, found, len(GRADES))
        resampled = rng.integers(len(truth), size=(resamples, len(truth)))
        kappas = quadratic_kappa(confusion(truth[resampled], found[resampled], len(GRADES)))
        result[name] = {
            "images": len(truth),
            "kappa": float(quadratic_kappa(matrix)),
            "interval": intervals.percentile_interval(kappas),
            "confusion": matrix.tolist(),
            "recall": {g: None if np.isnan(value) else float(value) for g, value in zip(GRADES, recall(matrix))},
        }
    result["verdict"] = _verdict(result["generated"])
    return result


def _verdict(generated) -> str:
    if "missing" in generated:
        return f"not judged: {generated['missing']}"
    low, high = generated["interval"]
    word = "reads" if low > 0 else "does not read"
    kappa = f"kappa {generated['kappa']:.2f}, {low:.2f} to {high:.2f}"
    return f"a grader of photographs {word} the requested grades ({kappa})"


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


def table(result: dict) -> str:
    """Render what `measure` returned as one line of text."""
    held_out = result["held_out"]
    reference = f"; in held-out photographs {held_out['kappa']:.2f}" if "kappa" in held_out else ""
    return f"Grading: {result['verdict']}{reference}."
