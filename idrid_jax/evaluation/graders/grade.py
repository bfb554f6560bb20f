"""`idrid-jax grade`: compare graders on pretrained features, choose one by cross-validation, and test it.

`grade` collects rows, one for each feature set and classifier and one for the fine-tuned network; `table` prints them.
What the training split says of a row is measured first, by `_validated_rows`. The test split is read after the choice,
by `_add_test_results`.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from idrid_jax.data import atomic, cache, folds
from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.data.manifest import Manifest, find_prepared
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import efficientnet, pretrained
from idrid_jax.evaluation.graders import classifiers, cross_validation, fine_tuned, frozen, metrics
from idrid_jax.evaluation.graders.classifiers import CLASSIFIERS
from idrid_jax.evaluation.graders.feature_sets import CROP, load_feature_sets
from idrid_jax.evaluation.progress import Progress, stage_logger

NAME = "grading.json"
PROTOCOL = (
    "repeated stratified cross-validation on the training split chose the settings and the row;"
    " the test split was read once, afterwards"
)
NO_TEST = "the release has no test photographs"


def grade(
    out: Path | str,
    *,
    data_dir: Path | str = "",
    release: str = "",
    weights_files: Sequence[Path | str] = (pretrained.IMAGENET,),
    sizes: Sequence[int] = (224, 448),
    num_folds: int = 5,
    repeats: int = 3,
    fine_tune: bool = False,
    seed: int = 0,
    on_progress: Progress = lambda text, stages: None,
    on_result: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Compare graders on the release and write `out/grading.json` and the grader for `evaluate`, `out/grader.npz`.

    Args:
      data_dir, release: see `find_prepared`.
      weights_files: of pretrained networks, see `features.pretrained`. A file that cannot be read as one is skipped
        with a warning on stderr, and so is `pretrained.IMAGENET` if it is not installed.
      sizes: sides in pixels at which EfficientNet-Lite0 sees the photographs: at 224 its usual features, at others
        `efficientnet.features_at`. Other networks have a size of their own. Smaller photographs are enlarged.
      num_folds, repeats: of the cross-validation. seed: of the folds and of classifiers.
      fine_tune: whether to fine-tune EfficientNet-Lite0, too, see `fine_tuned`. Its cross-validation is not repeated.
      on_progress: called before each stage. on_result: called before the files are written.
    Returns: for json.dumps: "release"; "protocol" in words; "rows", best first by cross-validation: the first is the
      chosen one; "grader", what grader.npz holds, or {"missing": why}; "notes", what is unusual about the photographs;
      "seconds" by part; "skipped_weights" {file name: why} if any.
      A row: "features", "extractor", "pixels", "classifier", "setting", "chosen"; "cv" and "test", each as
      `metrics.measure_classes` returns for the grade; "referable" {"cv", "test"}, each as `measure_referable`; "edema"
      {"cv", "test"}, each as `measure_classes`. What cannot be measured is {"missing": why}.
    Raises: UserError if there is no such release, no network, a missing file of weights, fewer than two grades or fewer
      photographs than folds in the training split, or `out` cannot be written.
    """
    with atomic.partial_folder(Path(out)):  # fails now, not after minutes, if it cannot be written
        pass
    feature_sets, skipped = load_feature_sets(weights_files, sizes)
    network = fine_tuned.Network.from_params(pretrained.load_efficientnet()) if fine_tune else None
    data = _load(find_prepared(data_dir or None, release), num_folds, repeats, seed)
    num_stages = len(feature_sets) * (2 + len(CLASSIFIERS)) + 3 * fine_tune
    log = stage_logger(on_progress, num_stages)
    seconds = {"features": 0.0, "cross_validation": 0.0, "test": 0.0} | ({"fine_tuning": 0.0} if fine_tune else {})
    with threadpool_limits(1):  # folds are fitted in threads, whose own limits would undo each other's
        rows = _validated_rows(data, feature_sets, seconds, log)
        if network is not None:
            begin = time.perf_counter()
            fine_tuned_row, models = _fine_tune(data, network, log)
            rows.append(fine_tuned_row)
            seconds["fine_tuning"] += time.perf_counter() - begin
        rows.sort(key=lambda row: -row["cv"]["qwk"])  # stable: of equal ones, the first
        for row in rows:
            row["chosen"] = row is rows[0]
        _add_test_results(data, feature_sets, rows, seconds, log)
        if network is not None:
            begin = time.perf_counter()
            _test_fine_tuned(data, network, models, fine_tuned_row, log)
            seconds["test"] += time.perf_counter() - begin
        grader, description = _fit_default_grader(data, feature_sets, rows)
    result = {"release": _describe(data), "protocol": PROTOCOL, "rows": rows, "grader": description}
    result |= {"notes": _notes(data, feature_sets), "seconds": {part: round(s, 1) for part, s in seconds.items()}}
    if skipped:
        result["skipped_weights"] = skipped
    on_result(result)
    if grader is not None:
        frozen.save(grader, Path(out) / frozen.FILE)
    atomic.write_text(Path(out) / NAME, json.dumps(result, indent=1) + "\n")
    return result


# --- photographs


@dataclasses.dataclass(frozen=True)
class _Data:
    """The labels of a release and the folds of its training split.

    Attributes:
      grades, edema: {split: int [N]}; edema is -1 where unknown.
      known: bool [N], the training photographs of known edema risk.
      grade_folds: int [R, N]. edema_folds: int [R, number of known], or None if edema cannot be cross-validated.
    """

    manifest: Manifest
    grades: dict[str, np.ndarray]
    edema: dict[str, np.ndarray]
    known: np.ndarray
    grade_folds: np.ndarray
    edema_folds: np.ndarray | None
    seed: int

    @property
    def num_folds(self) -> int:
        return int(self.grade_folds.max()) + 1


def _load(manifest, num_folds, repeats, seed) -> _Data:
    labels = {
        name: {split: np.array([getattr(p, name) for p in some], int) for split, some in manifest.grading.items()}
        for name in ("grade", "edema")
    }
    grades, edema = labels["grade"]["train"], labels["edema"]["train"]
    present = np.unique(grades)
    if len(present) < 2:
        found = f"only {GRADES[present[0]]}" if len(present) else "no graded photograph"
        raise UserError(f"{manifest.name}: its training split has {found}; a grader needs two grades or more")
    options = {"num_folds": num_folds, "repeats": repeats, "seed": seed}
    groups, known = folds.duplicate_indices(manifest, "train"), edema >= 0
    place = np.cumsum(known) - 1  # among the photographs of known risk
    known_groups = [[place[i] for i in group if known[i]] for group in groups]
    enough = known.sum() >= num_folds and len(np.unique(edema[known])) > 1
    return _Data(
        manifest=manifest,
        grades=labels["grade"],
        edema=labels["edema"],
        known=known,
        grade_folds=cross_validation.repeated_folds(grades, groups, **options),
        edema_folds=cross_validation.repeated_folds(edema[known], known_groups, **options) if enough else None,
        seed=seed,
    )


def _describe(data) -> dict:
    return {
        "name": data.manifest.name,
        "fingerprint": data.manifest.fingerprint,
        "crop": CROP,
        "photographs": {
            split: np.bincount(grades, minlength=len(GRADES)).tolist() for split, grades in data.grades.items()
        },
        "folds": data.num_folds,
        "repeats": len(data.grade_folds),
        "seed": data.seed,
    }


def _notes(data, feature_sets) -> list[str]:
    """Say what is unusual: grades that are absent or rarer than folds, photographs that were enlarged."""
    notes = []
    counts = {split: np.bincount(grades, minlength=len(GRADES)) for split, grades in data.grades.items()}
    for split, some in counts.items():
        if some.any() and (absent := [GRADES[i] for i in np.flatnonzero(some == 0)]):
            notes.append(f"the {split} split has no {', '.join(absent)}: its recall and AUC are unknown")
    for i in np.flatnonzero((counts["train"] > 0) & (counts["train"] < data.num_folds)):
        text = f"{GRADES[i]}: {counts['train'][i]} training photographs for {data.num_folds} folds, absent from some"
        notes.append(text)
    largest = max(one.size for one in feature_sets)
    available = cache.available_training_size(data.manifest, CROP, largest)
    if available is not None and (enlarged := [one.title for one in feature_sets if one.size > available]):
        notes.append(f"the photographs have {available} pixels: they were enlarged for {', '.join(enlarged)}")
    return notes


# --- rows


def _validated_rows(data, feature_sets, seconds, log) -> list[dict]:
    """Return a row for each feature set and classifier, with what the training split alone says. Adds to `seconds`."""
    rows = []
    for one in feature_sets:
        log(f"{one.title}: features of the training photographs")
        begin = time.perf_counter()
        features = one.features(data.manifest, "train")
        seconds["features"] += time.perf_counter() - begin
        for name, classifier in CLASSIFIERS.items():
            log(f"{one.title}: cross-validation of {classifier.title}")
            begin = time.perf_counter()
            row = {"features": one.title, "extractor": one.extractor.name, "pixels": one.size, "classifier": name}
            rows.append(row | _cross_validate(data, classifier, features))
            seconds["cross_validation"] += time.perf_counter() - begin
    return rows


def _cross_validate(data, classifier, features) -> dict:
    """Return the chosen setting and the measures of "cv". The edema risk takes the setting chosen for the grade."""
    grades, edema, options = data.grades["train"], data.edema["train"][data.known], {"seed": data.seed}
    setting, found = cross_validation.choose_setting(
        classifier, features, grades, data.grade_folds, len(GRADES), **options
    )
    found_edema = None
    if data.edema_folds is not None:
        found_edema = cross_validation.out_of_fold(
            classifier, setting, features[:, data.known], edema, data.edema_folds, len(EDEMA), **options
        )
    return {"setting": setting} | _measures(data, "train", "cv", found, found_edema)


def _measures(data, split, name, found, found_edema) -> dict:
    """Measure what a grader read in a split; `name`: "cv" or "test".

    found: class probabilities float [R, N, 5]. found_edema: [R, number of known risks, 3], or None if edema cannot be
    cross-validated.
    """
    grades, edema, options = data.grades[split], data.edema[split], {"seed": data.seed}
    result = {name: metrics.measure_classes(grades, found, GRADES, **options)}
    result["referable"] = {name: metrics.measure_referable(grades, found, **options)}
    if found_edema is None:
        return result | {"edema": {"missing": "known for too few training photographs, or of one risk only"}}
    if not (edema >= 0).any():
        return result | {"edema": {name: {"missing": "unknown for every test photograph"}}}
    return result | {"edema": {name: metrics.measure_classes(edema[edema >= 0], found_edema, EDEMA, **options)}}


def _add_test_results(data, feature_sets, rows, seconds, log) -> None:
    """Add "test" to each row, by classifiers that are fitted to the whole training split. Adds to `seconds`."""
    has_test = len(data.grades["test"]) > 0
    for one in feature_sets:
        log(f"{one.title}: the test photographs")
        begin = time.perf_counter()
        train = one.features(data.manifest, "train") if has_test else None
        test = one.features(data.manifest, "test") if has_test else None
        for row in rows:
            if row["extractor"] == one.extractor.name:
                _test(data, row, train, test)
        seconds["test"] += time.perf_counter() - begin


def _test(data, row, train, test) -> None:
    if test is None:
        row["test"] = row["referable"]["test"] = {"missing": NO_TEST}
        return
    classifier, options = CLASSIFIERS[row["classifier"]], {"seed": data.seed}
    model = classifiers.fit(classifier, row["setting"], train, data.grades["train"], **options)
    found, found_edema = classifiers.probabilities(model, test, len(GRADES))[None], None
    if "missing" not in row["edema"]:
        edema, known = data.edema["train"][data.known], data.edema["test"] >= 0
        model = classifiers.fit(classifier, row["setting"], train[:, data.known], edema, **options)
        found_edema = classifiers.probabilities(model, test[:, known], len(EDEMA))[None] if known.any() else ()
    _merge(row, _measures(data, "test", "test", found, found_edema))


def _merge(row, measures) -> None:
    """Add what `_measures` returned of the test split to a row."""
    row["test"] = measures["test"]
    for part in ("referable", "edema"):
        row[part] |= measures[part]


def _fine_tune(data, network, log) -> tuple[dict, list]:
    """Return the row of the fine-tuned network, with what the training split says, and the models for the test."""
    log("fine-tuning: activations of the training photographs")
    photographs = cache.load(data.manifest, "train", size=efficientnet.SIZE, channels=3, crop=CROP)
    activations = fine_tuned.training_activations(network, np.asarray(photographs.images), data.seed)
    folds, labels = data.grade_folds[0], {"grade": data.grades["train"], "edema": data.edema["train"]}
    log(f"fine-tuning: {data.num_folds + fine_tuned.NUM_SEEDS} models, for folds and seeds")
    without_fold, models = fine_tuned.train_folds_and_seeds(network, activations, labels, folds, data.seed)
    found = fine_tuned.out_of_fold(network, without_fold, activations[:2], folds)
    edema = None if data.edema_folds is None else found["edema"][None, data.known]
    row = {
        "features": f"{pretrained.IMAGENET}@{efficientnet.SIZE}",
        "extractor": pretrained.IMAGENET,
        "pixels": efficientnet.SIZE,
        "classifier": fine_tuned.NAME,
        "setting": dict(fine_tuned.SETTING),
    }
    return row | _measures(data, "train", "cv", found["grade"][None], edema), models


def _test_fine_tuned(data, network, models, row, log) -> None:
    log("fine-tuning: the test photographs")
    if not len(data.grades["test"]):
        row["test"] = row["referable"]["test"] = {"missing": NO_TEST}
        return
    photographs = cache.load(data.manifest, "test", size=efficientnet.SIZE, channels=3, crop=CROP)
    found = fine_tuned.mean_probabilities(network, models, network.sides(np.asarray(photographs.images)))
    edema = None if "missing" in row["edema"] else found["edema"][None, data.edema["test"] >= 0]
    _merge(row, _measures(data, "test", "test", found["grade"][None], edema))


def _fit_default_grader(data, feature_sets, rows) -> tuple[frozen.FrozenGrader | None, dict]:
    """Return the grader for `evaluate` and what it is: the best linear row on the default features."""
    default = next((one for one in feature_sets if one.is_default), None)
    if default is None:
        return None, {"missing": f"evaluate reads grades with {pretrained.IMAGENET} at {efficientnet.SIZE} pixels"}
    row = next(r for r in rows if r["extractor"] == default.extractor.name and r["classifier"] in frozen.KINDS)
    grader = frozen.fit(
        default.features(data.manifest, "train"),
        data.grades["train"],
        data.edema["train"],
        kind=row["classifier"],
        setting=row["setting"],
        extractor=default.extractor,
        fingerprint=data.manifest.fingerprint,
        size=default.size,
        crop=CROP,
    )
    return grader, {"file": frozen.FILE} | {key: row[key] for key in ("features", "classifier", "setting")}
