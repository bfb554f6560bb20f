"""The frozen grader: linear classifiers of grade and macular edema risk on the features of a pretrained network.

`idrid-jax grade` chooses and saves one, and `evaluate --grader` reads grades with it. It is an .npz of arrays and of a
JSON text that says what it was fitted to; it holds no pickle, and `load` checks all of it.

    grader = frozen.load(path, extractor=extractor, fingerprint=manifest.fingerprint)
    probabilities = grader.probabilities(frozen.sides(extractor, images))     # float [N, 5]
    grades = metrics.read_classes(probabilities)

Images must enter as the grader's own did: `grader.size` pixels, cropped by `grader.crop`. To read images of another
size, fit one to photographs of that size, which takes a second: `frozen.fit(...)`.
"""

import dataclasses
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
from scipy.special import softmax

from idrid_jax.data import atomic
from idrid_jax.data.layout import EDEMA, GRADES
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import feature_cache
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import classifiers
from idrid_jax.evaluation.graders.classifiers import ordinal_probabilities

FILE = "grader.npz"
VERSION = 1  # of the file's form
KINDS = ("logistic_regression", "ordinal_regression")  # of `classifiers.CLASSIFIERS`: the linear ones
HEADS = {"grade": len(GRADES), "edema": len(EDEMA)}  # what is read, and its number of classes
ARRAYS = {"classes": 1, "mean": 1, "scale": 1, "coefficients": 2, "intercepts": 1}  # of a head, with their dimensions
AGAIN = "run idrid-jax grade again"
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)  # of reading


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classifier of standardized features.

    Attributes:
      classes: int64 [K], the classes that it can read, increasing. mean, scale: float [D], of the features.
      coefficients, intercepts: float [L, D] and [L]. L is K for logistic regression and K - 1 for ordinal regression,
        whose logits are those of exceeding each class but the last.
    """

    classes: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def probabilities(self, features: np.ndarray, num_classes: int) -> np.ndarray:
        """Return class probabilities, the mean over sides: float64 [N, num_classes], from features [S, N, D]."""
        logits = (features - self.mean) / self.scale @ self.coefficients.T + self.intercepts
        is_ordinal = len(self.intercepts) < len(self.classes)
        result = np.zeros((*features.shape[:2], num_classes))
        for side, side_logits in zip(result, logits):
            side[:, self.classes] = ordinal_probabilities(side_logits) if is_ordinal else softmax(side_logits, axis=1)
        return result.mean(axis=0)


@dataclasses.dataclass(frozen=True)
class FrozenGrader:
    """Linear classifiers on the features of one extractor.

    Attributes:
      kind: one of KINDS. extractor: name of the extractor. fingerprint: of the release whose training photographs it
        was fitted to. size, crop: of these photographs, see `data.preprocess`.
      heads: {"grade": Head, "edema": Head}; without the latter where fewer than two risks are known.
    """

    kind: str
    extractor: str
    fingerprint: str
    size: int
    crop: str
    heads: dict[str, Head]

    def probabilities(self, features: np.ndarray, head: str = "grade") -> np.ndarray:
        """Return class probabilities, float64 [N, 5], for "edema" [N, 3], from features [S, N, D] as `sides` returns.

        They are the mean over the sides. Raises KeyError if the grader has no such head.
        """
        return self.heads[head].probabilities(features, HEADS[head])


def sides(extractor: FeatureExtractor, images: np.ndarray, cache_dir: Path | str | None = None) -> np.ndarray:
    """Return features of images and of their mirror images, float32 [2, N, D], for uint8 [N, R, R, C].

    cache_dir: folder of cached features; None: they are computed.
    """
    both = np.asarray(images), np.ascontiguousarray(np.asarray(images)[:, :, ::-1])
    if cache_dir is None:
        return np.stack([extractor.extract(side) for side in both])
    return np.stack([feature_cache.cached_features(extractor, side, cache_dir) for side in both])


def fit(
    features: np.ndarray,
    grades: np.ndarray,
    edema: np.ndarray,
    *,
    kind: str,
    setting: dict,
    extractor: FeatureExtractor,
    fingerprint: str,
    size: int,
    crop: str,
) -> FrozenGrader:
    """Fit a grader to the features of training photographs, float [S, N, D].

    Args: grades: int [N] in 0..4, at least two different ones. edema: int [N], risk 0..2, -1 if unknown.
      kind, setting: a name in KINDS and a setting of its grid in `classifiers`. Others: attributes of the grader.
    """
    heads = {}
    for name, labels in (("grade", np.asarray(grades)), ("edema", np.asarray(edema))):
        known = labels >= 0
        if name == "edema" and len(np.unique(labels[known])) < 2:
            continue
        model = classifiers.fit(classifiers.CLASSIFIERS[kind], setting, features[:, known], labels[known], seed=0)
        heads[name] = _head(model)
    return FrozenGrader(kind, extractor.name, fingerprint, size, crop, heads)


def _head(model):
    scaler, linear = model[0], model[-1]
    coefficients, intercepts = linear.coef_, linear.intercept_
    if isinstance(linear, classifiers.LogisticRegression) and len(coefficients) == 1:  # of two classes, the second's
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    return Head(linear.classes_.astype(np.int64), scaler.mean_, scaler.scale_, coefficients, intercepts)


# --- the file


def save(grader: FrozenGrader, path: Path | str) -> None:
    """Write a grader in one step. Raises UserError if it cannot be written."""
    fields = {name: getattr(grader, name) for name in ("kind", "extractor", "fingerprint", "size", "crop")}
    arrays = {"description": np.array(json.dumps(fields | {"version": VERSION, "heads": list(grader.heads)}))}
    for name, head in grader.heads.items():
        arrays |= {f"{name}_{array}": getattr(head, array) for array in ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic.write_bytes(Path(path), buffer.getvalue())


def load(path: Path | str, *, extractor: FeatureExtractor | None = None, fingerprint: str = "") -> FrozenGrader:
    """Read a grader that `save` wrote.

    extractor, fingerprint: if given, what the grader must have been fitted to.
    Raises UserError for a file that is missing, damaged or inconsistent, or fitted to something else.
    """
    try:
        if not zipfile.is_zipfile(path):  # NumPy's own message suggests allow_pickle
            raise ValueError("not a zip archive, as .npz is" if Path(path).exists() else "no such file")
        with np.load(path, allow_pickle=False) as file:
            grader = _parse({name: file[name] for name in file.files})
    except (*DAMAGED, OSError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path}: cannot be read as a grader ({reason[:160]}); {AGAIN}") from error
    if extractor is not None and grader.extractor != extractor.name:
        raise UserError(f"{path}: was fitted to features of {grader.extractor}, not of {extractor.name}; {AGAIN}")
    if fingerprint and grader.fingerprint != fingerprint:
        found, wanted = grader.fingerprint[:12], fingerprint[:12]
        raise UserError(f"{path}: was fitted to release {found}, not {wanted}; {AGAIN} with --release {wanted}")
    return grader


def _parse(arrays) -> FrozenGrader:
    """Return the grader in a file's arrays; raise ValueError, KeyError or TypeError if they are not one."""
    fields = json.loads(str(arrays["description"]))
    version, names = fields.pop("version"), fields.pop("heads")
    if version != VERSION or fields["kind"] not in KINDS or not {"grade"} <= set(names) <= set(HEADS):
        raise ValueError(f"version {version}, kind {fields['kind']}, heads {names}")
    heads = {name: Head(**{array: arrays[f"{name}_{array}"] for array in ARRAYS}) for name in names}
    for name, head in heads.items():
        _check_head(name, head, fields["kind"])
    return FrozenGrader(**fields, heads=heads)


def _check_head(name, head, kind):
    for array, dimensions in ARRAYS.items():
        value = getattr(head, array)
        if value.ndim != dimensions or value.dtype.kind not in "if" or not np.isfinite(value).all():
            raise ValueError(f"{name}_{array} is {value.dtype} {value.shape}, or not finite")
    classes, outputs = head.classes, len(head.classes) - (kind == "ordinal_regression")
    if classes.dtype.kind != "i" or len(classes) < 2 or not (np.diff(classes) > 0).all():
        raise ValueError(f"{name}_classes are {classes.tolist()}")
    if classes[0] < 0 or classes[-1] >= HEADS[name] or (head.scale <= 0).any():
        raise ValueError(f"{name}_classes are {classes.tolist()}, or a scale is not above 0")
    if head.coefficients.shape != (outputs, len(head.mean)) or len(head.intercepts) != outputs:
        raise ValueError(f"{name}_coefficients are {head.coefficients.shape}, intercepts {head.intercepts.shape}")
    if head.scale.shape != head.mean.shape:
        raise ValueError(f"{name}_scale has {len(head.scale)} values and {name}_mean {len(head.mean)}")
