"""Grading: does a grader of real photographs read, in generated images, the grades that were requested?

The grader is the `small_grader`, trained on the training photographs. Its kappa on held-out photographs is the
reference: it cannot read more in generated images than it can in photographs. A generator can win by exaggerating what
this grader looks at, so a high kappa is no proof that an ophthalmologist would agree.
"""

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import intervals
from idrid_jax.evaluation.graders.metrics import confusion, quadratic_kappa, recall

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


def table(result: dict) -> str:
    """Render what `measure` returned as one line of text."""
    held_out = result["held_out"]
    reference = f"; in held-out photographs {held_out['kappa']:.2f}" if "kappa" in held_out else ""
    return f"Grading: {result['verdict']}{reference}."
