"""Grading: does a grader of real photographs read, in generated images, the grades that were requested?

The grader is an ordinal regression on frozen features of a pretrained network, the best one by `graders/README.md`. It
is fitted to the run's training photographs at the size of the generated images; the network enlarges both. Its kappa on
held-out photographs of that size is the reference: it cannot read more in generated images than it can in photographs.
A generator can win by exaggerating what this grader looks at, so a high kappa is no proof that an ophthalmologist would
agree.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers, frozen, metrics

CLASSIFIER, SETTING = classifiers.CLASSIFIERS["ordinal_regression"], {"C": classifiers.ORDINAL_C}
MIN_IMAGES = 10  # of each set
CAPTIONS = {"generated": "generated images", "held_out": "held-out photographs"}


def measure(
    extractor: FeatureExtractor,
    training: np.ndarray,
    training_grades: np.ndarray,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    generated: np.ndarray,
    requested: np.ndarray,
    *,
    cache_dir: Path | str | None = None,
    seed: int = 0,
) -> dict:
    """Fit a grader to training photographs and compare the grades that it reads with the requested and the true ones.

    Args:
      extractor: the pretrained network.
      training, held_out, generated: uint8 [N, R, R, C], R and C alike. training_grades, held_out_grades, requested: int
        [N] in 0..4.
      cache_dir: folder of cached features of photographs; None: they are computed.
      seed: of the bootstrap.
    Returns: for json.dumps: "generated" and "held_out", each {"images"} and what `metrics.measure_classes` returns
      ("qwk", "qwk_interval", "recall", "confusion", ...), or {"missing": why} for fewer than `MIN_IMAGES` images or a
      single grade; "verdict"; "grader", what it is, in words; "pixels": R. {"missing": why} if the training photographs
      are of one grade.
    """
    if len(np.unique(training_grades)) < 2:
        return {"missing": "the training photographs are of one grade, a grader needs two or more"}
    features = frozen.sides(extractor, training, cache_dir)
    model = classifiers.fit(CLASSIFIER, SETTING, features, training_grades, seed=seed)

    def read(images, folder):
        return classifiers.probabilities(model, frozen.sides(extractor, images, folder), len(GRADES))

    size, seen = training.shape[1], extractor.input_size
    enlarged = f", enlarged to {seen}" if seen and seen > size else ""
    text = f"ordinal regression on features of {extractor.name}, fitted to {len(training)} training photographs of "
    about = {"grader": f"{text}{size} pixels{enlarged}", "pixels": size}
    return about | _compare(read, held_out, held_out_grades, generated, requested, cache_dir, seed)


def measure_saved(
    grader: frozen.FrozenGrader,
    extractor: FeatureExtractor,
    held_out: np.ndarray,
    held_out_grades: np.ndarray,
    generated: np.ndarray,
    requested: np.ndarray,
    *,
    cache_dir: Path | str | None = None,
    seed: int = 0,
) -> dict:
    """Return what `measure` returns for a grader that `idrid-jax grade` saved.

    held_out: uint8 [M, S, S, C], S the grader's size: it reads photographs at full size. `generated` has a size of its
    own, which the extractor enlarges. The other arguments are those of `measure`.
    """

    def read(images, folder):
        return grader.probabilities(frozen.sides(extractor, images, folder))

    kind = grader.kind.replace("_", " ")
    text = f"saved {kind} on features of {grader.extractor}, fitted to photographs of {grader.size} pixels"
    about = {"grader": text, "pixels": grader.size}
    return about | _compare(read, held_out, held_out_grades, generated, requested, cache_dir, seed)


def _compare(read, held_out, held_out_grades, generated, requested, cache_dir, seed) -> dict:
    """read: (images, folder of cached features or None) -> probabilities, float [N, 5]."""
    entries = {
        "generated": _entry("generated", requested, lambda: read(generated, None), seed),
        "held_out": _entry("held_out", held_out_grades, lambda: read(held_out, cache_dir), seed),
    }
    return entries | {"verdict": _verdict(**entries)}


def _entry(name: str, truth: np.ndarray, read: Callable[[], np.ndarray], seed: int) -> dict:
    if len(truth) < MIN_IMAGES:
        return {"missing": f"{len(truth)} {CAPTIONS[name]}; at least {MIN_IMAGES} are needed"}
    if len(np.unique(truth)) < 2:
        return {"missing": f"the {CAPTIONS[name]} are of one grade, kappa needs two or more"}
    measures = metrics.measure_classes(truth, read()[None], GRADES, seed=seed)
    return {"images": measures.pop("photographs"), **measures}


def _verdict(generated, held_out) -> str:
    if "missing" in generated:
        return f"not judged: {generated['missing']}"
    if "missing" not in held_out and held_out["qwk_interval"][0] <= 0:
        return f"not judged: the grader does not read held-out photographs either ({_kappa(held_out)})"
    word = "reads" if generated["qwk_interval"][0] > 0 else "does not read"
    return f"a grader of photographs {word} the requested grades ({_kappa(generated)})"


def _kappa(entry) -> str:
    low, high = entry["qwk_interval"]
    return f"kappa {entry['qwk']:.2f}, {low:.2f} to {high:.2f}"


def table(result: dict) -> str:
    """Render what `measure` returned, with "saved" from `measure_saved` if there, as text without a final newline."""
    if "missing" in result:
        return f"Grading: not measured: {result['missing']}."
    lines = [f"Grading: {result['verdict']}.", f"The grader: {result['grader']}.", *_rows(result)]
    if saved := result.get("saved"):
        lines += ["", f"Another grader: {saved['grader']}.", *_rows(saved)]
    return "\n".join(lines)


def _rows(result) -> list[str]:
    lines = [f"{'':<22}  kappa  95 %           recall by grade 0 to 4"]
    for name, caption in CAPTIONS.items():
        entry = result[name]
        if "missing" in entry:
            lines.append(f"{caption:<22}  -: {entry['missing']}")
            continue
        low, high = entry["qwk_interval"]
        recalls = " ".join("   -" if value is None else f"{value:4.2f}" for value in entry["recall"].values())
        lines.append(f"{caption:<22}  {entry['qwk']:5.2f}  {low:5.2f} to {high:5.2f}  {recalls}")
    return lines
