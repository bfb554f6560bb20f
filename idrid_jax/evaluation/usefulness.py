"""Whether synthetic images help: a grader trained with and without them, read on held-out real photographs.

Four ways to learn, with the same budget, each over the same seeds:

    real             the training photographs as they are
    oversampled      the training photographs, every grade drawn equally often
    balanced         synthetic images added until every grade has as many
    synthetic        as many synthetic images of every grade, and no photograph

Losses count every grade alike in all four. The held-out split is read at the end, and chooses nothing.
"""

from collections.abc import Callable

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import grader, grading

ARMS = {
    "real": "real photographs",
    "oversampled": "real, every grade drawn equally often",
    "balanced": "real and synthetic, as many of every grade",
    "synthetic": "synthetic alone",
}
RESAMPLES = 1000
LEVEL = 0.95
Told = Callable[[str], None]


def measure(
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    synthetic: np.ndarray,
    synthetic_grades: np.ndarray,
    *,
    seeds: int = 5,
    budget: grader.Budget = grader.Budget(),
    tell: Told = lambda text: None,
) -> dict:
    """Trains `seeds` graders each way and compares them.

    Args:
      training, held_out, synthetic: uint8 [N, R, R, C], R and C alike; synthetic as many of every grade as the training
        split has of its most frequent one (`wanted`).
      ..._grades: int [N] in 0..4.
      tell: is told what is being done.
    Returns: for json.dumps: "arms" {name: {"kappa", "balanced_accuracy": {"mean", "interval", "by_seed"}, "recall",
      "confusion" (summed over the seeds)}}, "differences" {name: the same of kappa and balanced accuracy, less those of
      "real"}, "verdict", "seeds", "budget". Where nothing can be told: {"missing": why}.
      Intervals are of 95 %, by resampling seeds and held-out images together, the same ones for every arm.
    """
    if len(held_out_grades) < 2 or len(np.unique(held_out_grades)) < 2:
        return {"missing": f"{len(held_out_grades)} held-out photographs of one grade or none: nothing to read"}
    wanted_ = wanted(training_grades)
    have = np.bincount(synthetic_grades, minlength=len(GRADES))
    if (short := np.flatnonzero(have < wanted_)).size:
        grade = short[0]
        return {"missing": f"{have[grade]} synthetic images of {GRADES[grade]}, and {wanted_[grade]} are needed"}
    read = {}
    for name, (images, grades, odds) in _arms(training, training_grades, synthetic, synthetic_grades).items():
        probabilities = []
        for seed in range(seeds):
            tell(f"usefulness: {ARMS[name]}, seed {seed + 1} of {seeds}")
            params = grader.train(images, grades, odds, seed=seed, budget=budget)
            probabilities.append(grader.read(params, held_out))
        read[name] = np.stack(probabilities).argmax(-1)  # [seeds, M]
    return compare(held_out_grades, read) | {"seeds": seeds, "budget": vars(budget).copy()}


def wanted(training_grades: np.ndarray) -> np.ndarray:
    """How many synthetic images of each grade are needed: int [5]."""
    return np.full(len(GRADES), np.bincount(training_grades, minlength=len(GRADES)).max())


def _arms(training, grades, synthetic, synthetic_grades):
    """{name: (images, grades, odds)}, all of one length: those that an arm leaves out have odds of 0."""
    images = np.concatenate([training, synthetic])
    labels = np.concatenate([grades, synthetic_grades]).astype(np.int32)
    counts = np.bincount(grades, minlength=len(GRADES))
    real = np.arange(len(labels)) < len(grades)
    place = np.zeros(len(labels), int)  # of a synthetic image among those of its grade
    for grade in range(len(GRADES)):
        of_grade = np.flatnonzero(~real & (labels == grade))
        place[of_grade] = np.arange(len(of_grade))
    filling = ~real & (place < (counts.max() - counts)[labels])
    odds = {
        "real": real.astype(float),
        "oversampled": real / np.maximum(counts, 1)[labels],
        "balanced": (real | filling).astype(float),
        "synthetic": (~real & (place < counts.max())).astype(float),
    }
    return {name: (images, labels, weight) for name, weight in odds.items()}


def compare(truth: np.ndarray, read: dict[str, np.ndarray], *, resamples: int = RESAMPLES) -> dict:
    """truth int [M], read {arm: int [seeds, M]}, "real" among them -> "arms", "differences", "verdict" as `measure`."""
    seeds, count = read["real"].shape
    rng = np.random.default_rng(0)
    images = rng.integers(count, size=(resamples, count))
    chosen = rng.integers(seeds, size=(resamples, seeds))
    measures = {"kappa": grading.quadratic_kappa, "balanced_accuracy": grading.balanced_accuracy}
    arms, drawn = {}, {}
    for name, one in read.items():
        matrix = grading.confusion(truth, one, len(GRADES))  # [seeds, 5, 5]
        # [resamples, seeds, 5, 5], a seed at a time: every resample of the images for every seed, then the seeds drawn
        again = np.stack([grading.confusion(truth[images], row[images], len(GRADES)) for row in one], axis=1)
        arms[name] = {}
        for key, function in measures.items():
            by_seed = function(matrix)
            drawn[name, key] = np.take_along_axis(function(again), chosen, axis=1).mean(1)
            arms[name][key] = _number(by_seed, drawn[name, key])
        with np.errstate(invalid="ignore"):
            recalls = grading.recall(matrix).mean(0)
        arms[name]["recall"] = {g: None if np.isnan(r) else float(r) for g, r in zip(GRADES, recalls)}
        arms[name]["confusion"] = matrix.sum(0).tolist()
    differences = {
        name: {
            key: _number(
                np.subtract(arms[name][key]["by_seed"], arms["real"][key]["by_seed"]),
                drawn[name, key] - drawn["real", key],
            )
            for key in measures
        }
        for name in read
        if name != "real"
    }
    return {"arms": arms, "differences": differences, "verdict": _verdict(arms, differences)}


def _number(by_seed, drawn):
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "mean": float(np.mean(by_seed)),
        "interval": [float(low), float(high)],
        "by_seed": [float(value) for value in by_seed],
    }


def _verdict(arms, differences) -> str:
    low, high = arms["real"]["kappa"]["interval"]
    if low <= 0:
        return (
            f"not measurable: the kappa of graders of real photographs is between {low:.2f} and {high:.2f}, which "
            "includes 0"
        )
    gain = differences["balanced"]["kappa"]
    low, high = gain["interval"]
    shown = f"kappa {gain['mean']:+.3f} ({low:+.3f} to {high:+.3f}) for adding synthetic images until grades are level"
    if low > 0:
        return f"a gain: {shown}"
    return f"a loss: {shown}" if high < 0 else f"no measurable gain: {shown}"


def table(result: dict) -> str:
    """What `measure` returned, for a console, without a newline at the end."""
    if "missing" in result:
        return f"Usefulness: not measured: {result['missing']}."
    width = max(map(len, ARMS.values()))
    lines = [
        f"{'a grader trained on':<{width}}  kappa  95 %            less real  balanced acc.  recall by grade 0 to 4"
    ]
    for name, arm in result["arms"].items():
        low, high = arm["kappa"]["interval"]
        less = result["differences"].get(name)
        recalls = " ".join("   -" if value is None else f"{value:4.2f}" for value in arm["recall"].values())
        lines.append(
            f"{ARMS[name]:<{width}}  {arm['kappa']['mean']:5.2f}  {low:5.2f} to {high:5.2f}  "
            f"{'' if less is None else format(less['kappa']['mean'], '+.3f'):>9}  "
            f"{arm['balanced_accuracy']['mean']:13.2f}  {recalls}"
        )
    lines += [
        "",
        f"Usefulness: {result['verdict']}.",
        f"{result['seeds']} seeds, {result['budget']['steps']} updates of {result['budget']['batch_size']} images each "
        "way; read on held-out real photographs.",
    ]
    return "\n".join(lines)
