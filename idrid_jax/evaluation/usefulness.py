"""Usefulness: does a grader read held-out photographs better when it is also trained on generated images?

The small grader is trained in several ways ("arms"), with the same budget and the same seeds:

    real             the training photographs
    oversampled      the training photographs, every grade sampled equally often
    balanced         training photographs, plus synthetic images until every grade has as many
    synthetic        as many synthetic images of every grade, no photographs
    filtered         as "balanced", with those synthetic images to whose grade a grader of photographs gives the highest
                     probability; only if `likelihood` is given

The loss gives every grade the same total weight in all of them. The baseline is the better of "real" and "oversampled"
on the held-out split, which is to the disadvantage of the synthetic images; nothing else is chosen by that split. The
result depends on the small grader: another classifier, or one pretrained on ImageNet, may gain nothing or more.
"""

from collections.abc import Callable

import numpy as np

from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.evaluation import small_grader
from idrid_jax.evaluation.graders import metrics

ARMS = {
    "real": "real photographs",
    "oversampled": "real, every grade sampled equally often",
    "balanced": "real and synthetic, as many of every grade",
    "synthetic": "synthetic only",
    "filtered": "real and the likeliest synthetic, as many",
}
MEASURES = {"kappa": metrics.quadratic_kappa, "balanced_accuracy": metrics.balanced_accuracy}
RESAMPLES = 1000
MIN_SEEDS = 5  # with fewer, the spread over seeds is hardly known, and the verdict says so
LEVEL = 0.95


def measure(
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    synthetic: np.ndarray,
    synthetic_grades: np.ndarray,
    *,
    likelihood: np.ndarray | None = None,
    edema: tuple[np.ndarray, np.ndarray] | None = None,
    seeds: int = 5,
    budget: small_grader.Budget = small_grader.Budget(),
    log: Callable[[str], None] = lambda text: None,
) -> dict:
    """Train `seeds` graders per arm and compare them on held-out photographs.

    Args:
      training, held_out, synthetic: uint8 [N, R, R, C], R and C alike. Of every grade, `synthetic` needs as many images
        as the most frequent grade has training photographs (`num_synthetic`); more are ignored.
      ..._grades: int [N] in 0..4.
      likelihood: probability of its grade for each synthetic image, by a grader of the training photographs: adds the
        arm "filtered", which chooses from all synthetic images.
      edema: macular edema risks, int 0..2, of the training and of the held-out photographs: the graders learn these
        too. Those of synthetic images are unknown.
      log: receives a line for each arm.
    Returns: for json.dumps: "arms" {name: {"kappa", "balanced_accuracy": {"mean", "interval", "by_seed"}, "recall",
      "confusion" (summed over the seeds)}}, "baseline": a name; "differences" {name: kappa and balanced accuracy minus
      those of the baseline}, "verdict", "seeds", "budget"; with `edema` "edema", a dict with the first four. If it
      cannot
      be measured: {"missing": why}.
      Intervals are of 95 %, by resampling seeds and held-out images together, the same ones for every arm, and widened
      by sqrt(S / (S - 1)), because S resampled seeds spread too little. They hold for this set of synthetic images, not
      for another sample or another generator.
    """
    if len(held_out_grades) < 2 or len(np.unique(held_out_grades)) < 2:
        return {"missing": f"{len(held_out_grades)} held-out photographs, of at most one grade"}
    wanted = num_synthetic(training_grades)
    counts = np.bincount(synthetic_grades, minlength=len(GRADES))
    if (short := np.flatnonzero(counts < wanted)).size:
        grade = short[0]
        return {"missing": f"{counts[grade]} synthetic images of {GRADES[grade]}, {wanted[grade]} are needed"}
    images = np.concatenate([training, synthetic])
    labels = np.concatenate([training_grades, synthetic_grades]).astype(np.int32)
    risks = None if edema is None else np.concatenate([edema[0], np.full(len(synthetic), -1)])
    read, read_edema = {}, {}
    for name, weights in sampling_weights(training_grades, synthetic_grades, likelihood).items():
        log(f"usefulness: {ARMS[name]}, {seeds} seeds")
        known_risks = risks if risks is not None and (risks[weights > 0] >= 0).any() else None
        params = small_grader.train(images, labels, weights, seeds=range(seeds), edema=known_risks, budget=budget)
        read[name] = small_grader.read(params, held_out, budget=budget).argmax(-1)  # [seeds, M]
        if known_risks is not None:
            read_edema[name] = small_grader.read_edema(params, held_out, budget=budget).argmax(-1)
    result = compare(held_out_grades, read) | {"seeds": seeds, "budget": vars(budget).copy()}
    if read_edema:
        result["edema"] = compare(edema[1], read_edema, tuple(f"risk {risk}" for risk in EDEMA))
    return result


def num_synthetic(training_grades: np.ndarray) -> np.ndarray:
    """Return how many synthetic images of each grade are needed, int [5]."""
    return np.full(len(GRADES), np.bincount(training_grades, minlength=len(GRADES)).max())


def sampling_weights(grades, synthetic_grades, likelihood=None) -> dict[str, np.ndarray]:
    """Return the sampling weight of each image in each arm, {arm: float [N + M]}, photographs first; 0 excludes it."""
    labels = np.concatenate([grades, synthetic_grades])
    counts = np.bincount(grades, minlength=len(GRADES))
    real = np.arange(len(labels)) < len(grades)
    lacking = (counts.max() - counts)[labels]
    in_order = _rank_in_grade(labels, len(grades), np.arange(len(synthetic_grades)))
    weights = {
        "real": real,
        "oversampled": real / np.maximum(counts, 1)[labels],
        "balanced": real | (in_order < lacking),
        "synthetic": in_order < counts.max(),
    }
    if likelihood is not None:
        weights["filtered"] = real | (_rank_in_grade(labels, len(grades), -likelihood) < lacking)
    return {name: weight.astype(float) for name, weight in weights.items()}


def _rank_in_grade(labels, num_real, order):
    """Return the rank of each synthetic image by `order` [M] within its grade; a rank beyond all for photographs."""
    rank = np.full(len(labels), len(labels))
    for grade in range(len(GRADES)):
        members = num_real + np.flatnonzero(labels[num_real:] == grade)
        rank[members[np.argsort(order[members - num_real], kind="stable")]] = np.arange(len(members))
    return rank


def compare(
    truth: np.ndarray, read: dict[str, np.ndarray], labels: tuple[str, ...] = GRADES, *, resamples: int = RESAMPLES
) -> dict:
    """Compare the arms' readings: truth int [M], read {arm: int [seeds, M]}, "real" among them; labels: names of the
    classes. Returns "arms", "baseline", "differences" and "verdict" as `measure`."""
    seeds, count = read["real"].shape
    rng = np.random.default_rng(0)
    images = rng.integers(count, size=(resamples, count))
    chosen_seeds = rng.integers(seeds, size=(resamples, seeds))
    arms, resampled = {}, {}
    for name, one in read.items():
        matrix = metrics.confusion(truth, one, len(labels))  # [seeds, 5, 5]
        # [resamples, seeds, 5, 5]: every resample of the images for every seed; the seeds are resampled below
        matrices = np.stack([metrics.confusion(truth[images], row[images], len(labels)) for row in one], axis=1)
        arms[name] = {}
        for key, function in MEASURES.items():
            values = np.take_along_axis(function(matrices), chosen_seeds, axis=1).mean(1)
            resampled[name, key] = values.mean() + (values - values.mean()) * np.sqrt(seeds / max(1, seeds - 1))
            arms[name][key] = _entry(function(matrix), resampled[name, key])
        with np.errstate(invalid="ignore"):
            recalls = metrics.recall(matrix).mean(0)
        arms[name]["recall"] = {label: None if np.isnan(r) else float(r) for label, r in zip(labels, recalls)}
        arms[name]["confusion"] = matrix.sum(0).tolist()
    baseline = max((name for name in ("real", "oversampled") if name in arms), key=lambda n: arms[n]["kappa"]["mean"])
    differences = {
        name: {
            key: _entry(
                np.subtract(arms[name][key]["by_seed"], arms[baseline][key]["by_seed"]),
                resampled[name, key] - resampled[baseline, key],
            )
            for key in MEASURES
        }
        for name in read
        if name != baseline
    }
    verdict = _verdict(arms, differences)
    if seeds < MIN_SEEDS:
        verdict += f"; {seeds} seed{'s are' if seeds > 1 else ' is'} too few for a conclusion, choose {MIN_SEEDS}"
    return {"arms": arms, "baseline": baseline, "differences": differences, "verdict": verdict}


def _entry(by_seed, resampled):
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "mean": float(np.mean(by_seed)),
        "interval": [float(low), float(high)],
        "by_seed": [float(value) for value in by_seed],
    }


def _verdict(arms, differences) -> str:
    low, high = arms["real"]["kappa"]["interval"]
    if low <= 0:
        return f"not measurable: the kappa of graders of photographs is {low:.2f} to {high:.2f}, which includes 0"
    parts = []
    added = {"balanced": "synthetic images until grades are balanced", "filtered": "the likeliest synthetic images"}
    for arm in [arm for arm in added if arm in differences]:
        gain = differences[arm]["kappa"]
        low, high = gain["interval"]
        word = "a gain" if low > 0 else "a loss" if high < 0 else "no measurable gain"
        parts.append(f"{word}: kappa {gain['mean']:+.3f} ({low:+.3f} to {high:+.3f}) by adding {added[arm]}")
    return "; ".join(parts)


def table(result: dict) -> str:
    """Render what `measure` returned as text, without a newline at the end."""
    if "missing" in result:
        return f"Usefulness: not measured: {result['missing']}."
    lines = [*_rows(result, "a grader trained on", "recall by grade 0 to 4"), "", f"Usefulness: {result['verdict']}."]
    if "edema" in result:
        rows = _rows(result["edema"], "macular edema risk", "recall by risk 0 to 2")
        lines += ["", *rows, "", f"Edema: {result['edema']['verdict']}."]
    lines.append(
        f"{result['seeds']} seeds per arm, {result['budget']['steps']} updates of {result['budget']['batch_size']} "
        "images; read on held-out photographs. minus best: minus the better of the two arms without synthetic images."
    )
    return "\n".join(lines)


def _rows(result, first, last):
    width = max(map(len, ARMS.values()))
    lines = [f"{first:<{width}}  kappa  95 %           minus best  balanced acc.  {last}"]
    for name, arm in result["arms"].items():
        low, high = arm["kappa"]["interval"]
        difference = result["differences"].get(name)
        recalls = " ".join("   -" if value is None else f"{value:4.2f}" for value in arm["recall"].values())
        lines.append(
            f"{ARMS[name]:<{width}}  {arm['kappa']['mean']:5.2f}  {low:5.2f} to {high:5.2f}  "
            f"{'' if difference is None else format(difference['kappa']['mean'], '+.3f'):>10}  "
            f"{arm['balanced_accuracy']['mean']:13.2f}  {recalls}"
        )
    return lines
