"""Whether a grader of real photographs reads, in generated images, the grades that they were asked for. NumPy; pure."""

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import grading, intervals

LEAST = 10  # images of each set


def measure(
    read: np.ndarray,
    asked: np.ndarray,
    read_held_out: np.ndarray,
    held_out_grades: np.ndarray,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """Grades read in generated images [N] and asked of them, and of held-out photographs [M] with their own.

    Returns for json.dumps: "generated" and "held_out" {"images", "kappa", "interval" (95 %, over images), "confusion",
    "recall"}, "verdict"; a set of fewer than `LEAST` images is {"missing": why}.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for name, found, truth in (("generated", read, asked), ("held_out", read_held_out, held_out_grades)):
        if len(truth) < LEAST:
            result[name] = {"missing": f"{len(truth)} {name.replace('_', '-')} images; it takes at least {LEAST}"}
            continue
        matrix = grading.confusion(truth, found, len(GRADES))
        again = rng.integers(len(truth), size=(resamples, len(truth)))
        drawn = grading.quadratic_kappa(grading.confusion(truth[again], found[again], len(GRADES)))
        recalls = zip(GRADES, grading.recall(matrix))
        result[name] = {
            "images": len(truth),
            "kappa": float(grading.quadratic_kappa(matrix)),
            "interval": intervals.interval(drawn),
            "confusion": matrix.tolist(),
            "recall": {grade: None if np.isnan(value) else float(value) for grade, value in recalls},
        }
    result["verdict"] = _verdict(result["generated"])
    return result


def _verdict(generated) -> str:
    if "missing" in generated:
        return f"not judged: {generated['missing']}"
    low, high = generated["interval"]
    word = "reads" if low > 0 else "does not read"
    return f"a grader of photographs {word} the asked grades (kappa {generated['kappa']:.2f}, {low:.2f} to {high:.2f})"


def line(result: dict) -> str:
    """What `measure` returned, for a console."""
    held = result["held_out"]
    beside = f"; in held-out photographs {held['kappa']:.2f}" if "kappa" in held else ""
    return f"Reading: {result['verdict']}{beside}."
