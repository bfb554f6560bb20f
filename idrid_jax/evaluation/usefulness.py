"""Whether synthetic images help: a grader trained with and without them, read on held-out real photographs.

Ways to learn, with the same budget, each over the same seeds:

    real             the training photographs as they are
    oversampled      the training photographs, every grade drawn equally often
    balanced         synthetic images added until every grade has as many
    synthetic        as many synthetic images of every grade, and no photograph
    filtered         as "balanced", of those synthetic images that a grader of real ones finds likeliest; where asked

Losses count every grade alike in all of them. The held-out split is read at the end. It chooses nothing but which of
the first two the others are held against: the better one, which is to the synthetic images' disadvantage.
"""

from collections.abc import Callable

import numpy as np

from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.evaluation import grader, grading

ARMS = {
    "real": "real photographs",
    "oversampled": "real, every grade drawn equally often",
    "balanced": "real and synthetic, as many of every grade",
    "synthetic": "synthetic alone",
    "filtered": "real and the likeliest synthetic, as many",
}
RESAMPLES = 1000
SEEDS = 5  # with fewer, the spread over seeds is hardly known, and the verdict says so
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
    likelihood: np.ndarray | None = None,
    edema: tuple[np.ndarray, np.ndarray] | None = None,
    seeds: int = 5,
    budget: grader.Budget = grader.Budget(),
    tell: Told = lambda text: None,
) -> dict:
    """Trains `seeds` graders each way and compares them.

    Args:
      training, held_out, synthetic: uint8 [N, R, R, C], R and C alike; synthetic as many of every grade as the training
        split has of its most frequent one (`wanted`), or more: then the first so many are taken.
      ..._grades: int [N] in 0..4.
      likelihood: float of each synthetic image, by a grader of training photographs: adds the way "filtered", of the
        likeliest of all that are given.
      edema: risks of macular oedema, int 0..2, of the training and of the held-out photographs: graders then learn
        these too. Of synthetic images nobody knows them.
      tell: is told what is being done.
    Returns: for json.dumps: "arms" {name: {"kappa", "balanced_accuracy": {"mean", "interval", "by_seed"}, "recall",
      "confusion" (summed over the seeds)}}, "baseline": the better of the ways without synthetic images, "differences"
      {name: kappa and balanced accuracy of the others, less those of that one}, "verdict", "seeds", "budget"; with
      oedema "edema", a dict with the first four. Where nothing can be told: {"missing": why}.
      Intervals are of 95 %, by resampling seeds and held-out images together, the same ones for every arm, and widened
      by sqrt(S / (S - 1)), as S resampled seeds spread too little. They are of one set of synthetic images, and say
      nothing of another sample or another generator.
    """
    if len(held_out_grades) < 2 or len(np.unique(held_out_grades)) < 2:
        return {"missing": f"{len(held_out_grades)} held-out photographs of one grade or none: nothing to read"}
    wanted_ = wanted(training_grades)
    have = np.bincount(synthetic_grades, minlength=len(GRADES))
    if (short := np.flatnonzero(have < wanted_)).size:
        grade = short[0]
        return {"missing": f"{have[grade]} synthetic images of {GRADES[grade]}, and {wanted_[grade]} are needed"}
    images = np.concatenate([training, synthetic])
    labels = np.concatenate([training_grades, synthetic_grades]).astype(np.int32)
    risks = None if edema is None else np.concatenate([edema[0], np.full(len(synthetic), -1)])
    read, read_edema = {}, {}
    for name, odds in _arms(training_grades, synthetic_grades, likelihood).items():
        tell(f"usefulness: {ARMS[name]}, {seeds} seeds")
        learns = risks if risks is not None and (risks[odds > 0] >= 0).any() else None
        params = grader.train(images, labels, odds, seeds=range(seeds), edema=learns, budget=budget)
        read[name] = grader.read(params, held_out, budget=budget).argmax(-1)  # [seeds, M]
        if learns is not None:
            read_edema[name] = grader.read_edema(params, held_out, budget=budget).argmax(-1)
    result = compare(held_out_grades, read) | {"seeds": seeds, "budget": vars(budget).copy()}
    if read_edema:
        result["edema"] = compare(edema[1], read_edema, tuple(f"risk {risk}" for risk in EDEMA))
    return result


def wanted(training_grades: np.ndarray) -> np.ndarray:
    """How many synthetic images of each grade are needed: int [5]."""
    return np.full(len(GRADES), np.bincount(training_grades, minlength=len(GRADES)).max())


def _arms(grades, synthetic_grades, likelihood=None) -> dict[str, np.ndarray]:
    """How often each image is drawn, photographs first: float [N + M] for each way; 0 for those it leaves out."""
    labels = np.concatenate([grades, synthetic_grades])
    counts = np.bincount(grades, minlength=len(GRADES))
    real = np.arange(len(labels)) < len(grades)
    missing = (counts.max() - counts)[labels]

    def first(order):
        """Place of each synthetic image among those of its grade, which come in this order."""
        place = np.full(len(labels), len(labels))
        for grade in range(len(GRADES)):
            of_grade = np.flatnonzero(~real & (labels == grade))
            place[of_grade[np.argsort(order[of_grade - len(grades)], kind="stable")]] = np.arange(len(of_grade))
        return place

    as_drawn = first(np.arange(len(synthetic_grades)))
    odds = {
        "real": real,
        "oversampled": real / np.maximum(counts, 1)[labels],
        "balanced": real | (as_drawn < missing),
        "synthetic": as_drawn < counts.max(),
    }
    if likelihood is not None:
        odds["filtered"] = real | (first(-likelihood) < missing)
    return {name: weight.astype(float) for name, weight in odds.items()}


def compare(
    truth: np.ndarray,
    read: dict[str, np.ndarray],
    labels: tuple[str, ...] = GRADES,
    *,
    resamples: int = RESAMPLES,
) -> dict:
    """truth int [M], read {arm: int [seeds, M]}, "real" among them -> "arms", "baseline", "differences", "verdict" as
    `measure`. labels: what 0, 1, ... are called."""
    seeds, count = read["real"].shape
    rng = np.random.default_rng(0)
    images = rng.integers(count, size=(resamples, count))
    chosen = rng.integers(seeds, size=(resamples, seeds))
    measures = {"kappa": grading.quadratic_kappa, "balanced_accuracy": grading.balanced_accuracy}
    arms, drawn = {}, {}
    for name, one in read.items():
        matrix = grading.confusion(truth, one, len(labels))  # [seeds, 5, 5]
        # [resamples, seeds, 5, 5], a seed at a time: every resample of the images for every seed, then the seeds drawn
        again = np.stack([grading.confusion(truth[images], row[images], len(labels)) for row in one], axis=1)
        arms[name] = {}
        for key, function in measures.items():
            by_seed = function(matrix)
            values = np.take_along_axis(function(again), chosen, axis=1).mean(1)
            drawn[name, key] = values.mean() + (values - values.mean()) * np.sqrt(seeds / max(1, seeds - 1))
            arms[name][key] = _number(by_seed, drawn[name, key])
        with np.errstate(invalid="ignore"):
            recalls = grading.recall(matrix).mean(0)
        arms[name]["recall"] = {g: None if np.isnan(r) else float(r) for g, r in zip(labels, recalls)}
        arms[name]["confusion"] = matrix.sum(0).tolist()
    plain = [name for name in ("real", "oversampled") if name in arms]
    beside = max(plain, key=lambda name: arms[name]["kappa"]["mean"])
    differences = {
        name: {
            key: _number(
                np.subtract(arms[name][key]["by_seed"], arms[beside][key]["by_seed"]),
                drawn[name, key] - drawn[beside, key],
            )
            for key in measures
        }
        for name in read
        if name != beside
    }
    verdict = _verdict(arms, differences)
    if seeds < SEEDS:
        verdict += f"; {seeds} seed{'s are' if seeds > 1 else ' is'} few to tell by, take {SEEDS}"
    return {"arms": arms, "baseline": beside, "differences": differences, "verdict": verdict}


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
    said = []
    for arm in ("balanced", "filtered"):
        if arm in differences:
            gain = differences[arm]["kappa"]
            low, high = gain["interval"]
            what = (
                "adding synthetic images until grades are level" if arm == "balanced" else "adding the likeliest ones"
            )
            word = "a gain" if low > 0 else "a loss" if high < 0 else "no measurable gain"
            said.append(f"{word}: kappa {gain['mean']:+.3f} ({low:+.3f} to {high:+.3f}) for {what}")
    return "; ".join(said)


def table(result: dict) -> str:
    """What `measure` returned, for a console, without a newline at the end."""
    if "missing" in result:
        return f"Usefulness: not measured: {result['missing']}."
    lines = [*_rows(result, "a grader trained on", "recall by grade 0 to 4"), "", f"Usefulness: {result['verdict']}."]
    if "edema" in result:
        edema = result["edema"]
        lines += [
            "",
            *_rows(edema, "risk of macular oedema", "recall by risk 0 to 2"),
            "",
            f"Oedema: {edema['verdict']}.",
        ]
    lines.append(
        f"{result['seeds']} seeds, {result['budget']['steps']} updates of {result['budget']['batch_size']} images each "
        "way; read on held-out real photographs. Less best: than the better of the two ways without synthetic images."
    )
    return "\n".join(lines)


def _rows(result, first, last):
    width = max(map(len, ARMS.values()))
    lines = [f"{first:<{width}}  kappa  95 %            less best  balanced acc.  {last}"]
    for name, arm in result["arms"].items():
        low, high = arm["kappa"]["interval"]
        less = result["differences"].get(name)
        recalls = " ".join("   -" if value is None else f"{value:4.2f}" for value in arm["recall"].values())
        lines.append(
            f"{ARMS[name]:<{width}}  {arm['kappa']['mean']:5.2f}  {low:5.2f} to {high:5.2f}  "
            f"{'' if less is None else format(less['kappa']['mean'], '+.3f'):>9}  "
            f"{arm['balanced_accuracy']['mean']:13.2f}  {recalls}"
        )
    return lines
