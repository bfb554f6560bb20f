"""Comparison of graders on the same held-out photographs: paired intervals, verdicts in words, several runs combined.

A reading is the grade that one grader reads in one photograph. Graders come in arms (what they were trained on, see
`usefulness.ARMS`) and seeds. NumPy; pure.
"""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.graders import metrics

ARMS = {
    "real": "photographs",
    "real_balanced": "photographs, grades weighted equally",
    "real_half": "half of the photographs, the same",
    "synthetic_balanced": "photographs + synthetic until balanced",
    "synthetic_twice": "photographs + synthetic, twice as many",
    "synthetic_only": "synthetic only",
    "synthetic_balanced_filtered": "photographs + likeliest until balanced",
    "synthetic_twice_filtered": "photographs + likeliest, twice as many",
    "synthetic_only_filtered": "likeliest synthetic only",
}
WITHOUT_SYNTHETIC = ("real", "real_balanced")  # the better one is the baseline
RECALL_BASELINE = "real_balanced"
REFERENCE = "real_half"  # what half of the photographs are worth: the scale on which to see a gain
ADDED = tuple(name for name in ARMS if name.startswith("synthetic") and "only" not in name)  # to photographs
SIZES = {"generator": "at the generated images' size", "full": "at full size"}  # at which graders see photographs
QUESTIONS = {"generator": "what the images themselves carry", "full": "for a user who has the photographs"}  # by size
RESAMPLES = 4000  # verdicts of grades need the outermost of them
LEVEL = 0.95
MIN_SEEDS = 5  # with fewer, the spread over seeds is hardly known, and the verdict says so
MIN_PHOTOGRAPHS = 10  # held-out photographs of a grade, for a verdict on its recall


def summarize(
    truth: np.ndarray, read: dict[str, dict[str, np.ndarray]], photographs: Sequence[str], *, extractor: str
) -> dict:
    """Return what `usefulness.measure` returns, from readings.

    Args:
      truth: int [M]. read: {size of SIZES: {arm: int [seeds, M]}}.
      photographs: a text for each of the M that no other photograph has. extractor: its name.
    """
    sizes = {size: compare(truth, arms) for size, arms in read.items()}
    size = "full" if "full" in sizes else "generator"
    seeds = len(next(iter(read[size].values())))
    readings = {"truth": _digits(truth), "photographs": " ".join(photographs)}
    readings["read"] = {
        key: {arm: [_digits(r) for r in rows] for arm, rows in arms.items()} for key, arms in read.items()
    }
    return {
        "verdict": f"{SIZES[size]} ({QUESTIONS[size]}): {sizes[size]['verdict']}",
        "size": size,
        "sizes": sizes,
        "seeds": seeds,
        "extractor": extractor,
        "readings": readings,
    }


def combine_runs(results: Sequence[dict]) -> dict:
    """Return one result for several runs that `usefulness.measure` evaluated on different photographs.

    Run i's graders read run i's held-out photographs; all readings are then compared as if of one set, seed by seed.
    Meant for the five runs of `config.data.held_out_fold`, which together are evaluated on all photographs.

    Returns: as `usefulness.measure`, for the sizes that all results have. {"missing": why} if a result is missing, or
      the results differ in the extractor, the seeds or the arms, or share photographs (which would count twice).
    """
    if not results:
        return {"missing": "no run was measured"}
    if absent := [result["missing"] for result in results if "missing" in result]:
        return {"missing": absent[0]}
    sizes = [size for size in results[0]["sizes"] if all(size in result["sizes"] for result in results)]
    for what, key in (("extractors", "extractor"), ("numbers of seeds", "seeds")):
        if len({result[key] for result in results}) > 1:
            return {"missing": f"the runs were measured with different {what}"}
    readings = [result["readings"] for result in results]
    photographs = [set(reading["photographs"].split()) for reading in readings]
    if len(set().union(*photographs)) < sum(map(len, photographs)):
        return {"missing": "two runs were measured on the same photographs; combine runs with different held_out_fold"}
    read = {
        size: {
            arm: np.concatenate([[_from_digits(r) for r in reading["read"][size][arm]] for reading in readings], axis=1)
            for arm in readings[0]["read"][size]
        }
        for size in sizes
    }
    truth = _from_digits("".join(reading["truth"] for reading in readings))
    together = " ".join(reading["photographs"] for reading in readings).split()
    return summarize(truth, read, together, extractor=results[0]["extractor"]) | {"runs": len(results)}


def _digits(grades):
    return "".join(map(str, grades))


def _from_digits(text):
    return np.array(list(text), int)


# --- one size


def compare(truth: np.ndarray, read: dict[str, np.ndarray]) -> dict:
    """Compare the arms' readings: truth int [M], read {arm: int [seeds, M]}, both of WITHOUT_SYNTHETIC among them.

    Returns: "photographs" [a count for each grade]; "arms" {name: {"qwk", "balanced_accuracy": {"mean", "interval",
      "by_seed"}, "recall" {grade: {"mean", "interval"}, or None without photographs}, "confusion" (summed over the
      seeds)}}; "baseline", the arm without synthetic images that has the higher kappa; "differences" {name: "qwk" and
      "balanced_accuracy" minus those of the baseline, "recall" minus that of RECALL_BASELINE}; "best", the arm of ADDED
      with the highest mean kappa; "verdict" and "by_grade" {grade: verdict}, both on that arm.
      Intervals are of 95 %, by resampling seeds and photographs together, the same ones for every arm, and widened by
      sqrt(S / (S - 1)), because S resampled seeds spread too little. Verdicts use wider ones (Bonferroni), which hold
      for all arms of ADDED at once, because the best is chosen from them; those of grades also for all grades.
    """
    seeds, count = read["real"].shape
    rng = np.random.default_rng(0)
    photographs = rng.integers(count, size=(RESAMPLES, count))
    chosen_seeds = rng.integers(seeds, size=(RESAMPLES, seeds))
    by_seed, resampled, arms = {}, {}, {}
    for name, rows in read.items():
        matrices = metrics.confusion(truth, rows, len(GRADES))
        by_seed[name] = _measures(matrices)
        resampled[name] = _resample(truth, rows, photographs, chosen_seeds)
        arms[name] = _entries(by_seed[name], resampled[name]) | {"confusion": matrices.sum(0).tolist()}
    baseline = max(WITHOUT_SYNTHETIC, key=lambda name: arms[name]["qwk"]["mean"])
    base, base_resampled = (_with_recall_baseline(values, baseline) for values in (by_seed, resampled))
    gain = {name: resampled[name] - base_resampled for name in read if name != baseline}
    differences = {name: _entries(by_seed[name] - base, gain[name]) for name in gain}
    counts = np.bincount(truth, minlength=len(GRADES))
    result = {"photographs": counts.tolist(), "arms": arms, "baseline": baseline, "differences": differences}
    added = [name for name in ADDED if name in arms]
    best = max(added, key=lambda name: differences[name]["qwk"]["mean"])
    verdict = _verdict(arms[baseline]["qwk"], differences[best]["qwk"]["mean"], gain[best][:, 0], best, len(added))
    if REFERENCE in differences:
        reference = differences[REFERENCE]["qwk"]
        low, high = reference["interval"]
        verdict += (
            f"; for comparison, with half of the photographs {reference['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    if seeds < MIN_SEEDS:
        verdict += f"; {seeds} seed{'s are' if seeds > 1 else ' is'} too few for a conclusion, choose {MIN_SEEDS}"
    by_grade = {
        grade: _grade_verdict(counts[label], differences[best]["recall"][grade], gain[best][:, 2 + label], len(added))
        for label, grade in enumerate(GRADES)
    }
    return result | {"best": best, "verdict": verdict, "by_grade": by_grade}


def _with_recall_baseline(values, baseline):
    return np.concatenate([values[baseline][:, :2], values[RECALL_BASELINE][:, 2:]], axis=1)


def _measures(matrices):
    """Return kappa, balanced accuracy and the recall of each grade of [..., 5, 5]: float [..., 7]."""
    kappa, accuracy = metrics.quadratic_kappa(matrices), metrics.balanced_accuracy(matrices)
    return np.concatenate([kappa[..., None], accuracy[..., None], metrics.recall(matrices)], axis=-1)


def _resample(truth, rows, photographs, chosen_seeds):
    """Return `_measures`, the mean over resampled seeds, of resampled photographs: float [resamples, 7]."""
    # every resample of the photographs for every seed first: [resamples, seeds, 7]
    values = np.stack([_measures(metrics.confusion(truth[photographs], r[photographs], len(GRADES))) for r in rows], 1)
    values = np.take_along_axis(values, chosen_seeds[..., None], axis=1).mean(1)
    seeds, mean = len(rows), _nanmean(values)
    return mean + (values - mean) * np.sqrt(seeds / max(1, seeds - 1))


def _nanmean(values):
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)


def _entries(by_seed, resampled) -> dict:
    """Return the entries of an arm or a difference, from float [seeds, 7] and [resamples, 7]."""
    result = {
        name: _entry(by_seed[:, i], resampled[:, i]) | {"by_seed": by_seed[:, i].tolist()}
        for i, name in enumerate(("qwk", "balanced_accuracy"))
    }
    recalls = [None if np.isnan(b).any() else _entry(b, r) for b, r in zip(by_seed[:, 2:].T, resampled[:, 2:].T)]
    return result | {"recall": dict(zip(GRADES, recalls))}


def _entry(by_seed, resampled) -> dict:
    return {"mean": float(by_seed.mean()), "interval": _interval(resampled, 1)}


def _interval(resampled, comparisons) -> list[float]:
    """Return the interval of one of several comparisons, which all hold at once with probability LEVEL or more."""
    tail = (1 - LEVEL) / 2 / comparisons
    return np.nanquantile(resampled, [tail, 1 - tail]).tolist()


def _verdict(baseline, mean, resampled, arm, num_arms) -> str:
    low, high = baseline["interval"]
    if low <= 0:
        return f"not measurable: the kappa of graders of photographs is {low:.2f} to {high:.2f}, which includes 0"
    low, high = _interval(resampled, num_arms)
    best = f", the best of {num_arms} ways to add synthetic images" if num_arms > 1 else ""
    return f"{_word(low, high)}: kappa {mean:+.3f} ({low:+.3f} to {high:+.3f}) with {ARMS[arm]}{best}"


def _grade_verdict(count, recall, resampled, num_arms) -> str:
    if count < MIN_PHOTOGRAPHS:
        return f"not measurable: {count} held-out photographs, {MIN_PHOTOGRAPHS} are needed"
    low, high = _interval(resampled, num_arms * len(GRADES))
    return f"{_word(low, high)}: recall {recall['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def _word(low, high):
    return "a gain" if low > 0 else "a loss" if high < 0 else "no measurable gain"


# --- text


def table(result: dict) -> str:
    """Render what `usefulness.measure` or `combine_runs` returned as text, without a newline at the end."""
    if "missing" in result:
        return f"Usefulness: not measured: {result['missing']}."
    lines = []
    for size, comparison in result["sizes"].items():
        count = sum(comparison["photographs"])
        lines += [
            f"Graders {SIZES[size]} ({QUESTIONS[size]}), read on {count} held-out photographs:",
            *_rows(comparison),
            "",
        ]
        lines += [f"Usefulness {SIZES[size]}: {comparison['verdict']}."]
        lines += [f"  {grade}: {verdict}" for grade, verdict in comparison["by_grade"].items()] + [""]
    runs = f", {result['runs']} runs" if "runs" in result else ""
    lines.append(
        f"{result['seeds']} seeds per arm{runs}, features of {result['extractor']}. minus best: minus the better of "
        "the two arms without synthetic images. Verdicts of grades: against photographs with grades weighted equally."
    )
    return "\n".join(lines)


def _rows(comparison) -> list[str]:
    width = max(map(len, ARMS.values()))
    lines = [
        f"{'a grader trained on':<{width}}  kappa  95 %           minus best  balanced acc.  recall by grade 0 to 4"
    ]
    for name, arm in comparison["arms"].items():
        low, high = arm["qwk"]["interval"]
        difference = comparison["differences"].get(name)
        recalls = " ".join("   -" if value is None else f"{value['mean']:4.2f}" for value in arm["recall"].values())
        lines.append(
            f"{ARMS[name]:<{width}}  {arm['qwk']['mean']:5.2f}  {low:5.2f} to {high:5.2f}  "
            f"{'' if difference is None else format(difference['qwk']['mean'], '+.3f'):>10}  "
            f"{arm['balanced_accuracy']['mean']:13.2f}  {recalls}"
        )
    return lines
