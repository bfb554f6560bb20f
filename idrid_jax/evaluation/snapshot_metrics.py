"""Cheap measures of a snapshot while a generator trains: how close, how diverse, and whether they are copies.

Judged by photographs of the training split that the networks are not shown (`config.data.validation_folds`), never by
the test split.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from idrid_jax.data.cache import Split
from idrid_jax.evaluation import distances, memorization
from idrid_jax.evaluation.features import pretrained, random_network, trained_grader
from idrid_jax.evaluation.image_quality import ssim_pairs

ALIKE = 60  # images of each set whose pairs SSIM takes at 128 pixels and below, fewer above: it shall cost seconds
LEAST = 10  # validation photographs; with fewer the training ones are the reference


class Measures:
    """Handed to `loop.train`; what is of photographs alone is computed at the first call.

    kid, kid_grader, diversity: only where kid, kid_grader or kid_imagenet chooses the checkpoint, or a collapse shall
      stop training, as a grader has to be trained for them.
    kid_grader, kid_random: to the validation photographs (where they are fewer than LEAST: to the training ones),
      unbiased, by the features of a grader (`trained_grader`) and by random ones. Not x1000. kid: the mean of both,
      which are of one order on photographs and noise. The grader's alone ends at 0 long before textures are right; the
      random ones alone are won by a blurred mean image.
    kid_imagenet: likewise by the features of `pretrained.IMAGENET`, which tell images apart where the others do not;
      a fortieth of a second an image on a CPU's core, and only where it chooses the checkpoint.
    diversity: the variance of the grader's features among the fakes over that among training photographs.
    copied: the share of fakes that are copies of a training photograph (`memorization.COPY`).
    ssim_among, ssim_excess, ssim_gap: SSIM among the fakes; less that among as many training photographs; the excess
      without its sign.
    veto: 1 where more are copied than `memorization.allowed`: such a snapshot is not to be chosen; 0 otherwise.
    """

    # those of which lower is better
    names = ("kid", "kid_grader", "kid_random", "kid_imagenet", "copied", "ssim_among", "ssim_gap")

    def __init__(
        self, folder: Path, chooses: str = "kid", stops: bool = False, tell: Callable[[str], None] = lambda text: None
    ):
        """folder: where graders of the release are kept. chooses: `config.checkpoint.best`. stops: whether training
        shall stop where images grow alike (see `alarm`), as diversity says. tell: is told of what takes long. Raises:
        UserError where the weights of `kid_imagenet` are not installed."""
        self._folder, self._with_grader = Path(folder), stops or chooses in ("kid", "kid_grader", "kid_imagenet")
        self._imagenet = pretrained.load(pretrained.IMAGENET) if chooses == "kid_imagenet" else None
        self._tell, self._real = tell, None

    def __call__(self, fakes: np.ndarray, grades: np.ndarray, training: Split, validation: Split) -> dict[str, float]:
        """fakes uint8 [N, R, R, C], N at least 2 -> numbers; those that lack photographs are left out."""
        if self._real is None:
            folder = self._folder if self._with_grader else None
            self._real = _Real(training, validation, folder, self._imagenet, self._tell)
        real, out = self._real, {}
        if real.grader is not None:
            features = real.grader.extract(fakes)
            out["kid_grader"] = distances.kid(features, real.features)
            out["diversity"] = float(features.var(axis=0).sum() / max(real.variance, 1e-12))
        out["kid_random"] = distances.kid(random_network.extract(fakes), real.random_features)
        if real.grader is not None:
            out["kid"] = (out["kid_grader"] + out["kid_random"]) / 2
        if self._imagenet is not None:
            out["kid_imagenet"] = distances.kid(self._imagenet.extract(fakes), real.imagenet_features)
        if real.copies is not None:
            copied = float((real.copies.likeness(fakes) >= memorization.COPY).mean())
            out |= {"copied": copied, "veto": float(copied > memorization.allowed(len(fakes)))}
        among = ssim_among(fakes)
        out |= {"ssim_among": among}
        if real.ssim_among is not None:
            out |= {"ssim_excess": among - real.ssim_among, "ssim_gap": abs(among - real.ssim_among)}
        return out


class _Real:
    """What the photographs alone say."""

    def __init__(self, training, validation, folder, imagenet, tell):
        images = np.asarray(training.images)
        enough = len(validation.grades) >= LEAST
        reference = np.asarray(validation.images) if enough else images
        if not enough:
            tell(
                f"{len(validation.grades)} validation photographs, fewer than {LEAST}: snapshots are measured by those "
                "trained on"
            )
        self.grader = None
        if folder is not None:
            self.grader, _ = trained_grader.train(images, training.grades, folder, tell=tell)
            self.features = self.grader.extract(reference)
            self.variance = float(self.grader.extract(images).var(axis=0).sum())
        self.random_features = random_network.extract(reference)
        self.imagenet_features = None if imagenet is None else imagenet.extract(reference)
        self.copies = memorization.Training(images) if len(images) >= memorization.LEAST else None
        some = np.linspace(0, len(images) - 1, min(_alike(images), len(images))).astype(int)
        self.ssim_among = ssim_among(images[some]) if len(some) > 1 else None


def _alike(images) -> int:
    return max(8, int(ALIKE * min(1, 128 / images.shape[1])))


def ssim_among(images: np.ndarray) -> float:
    """Mean SSIM of the first images, uint8 [N, R, R, C], with each other: high is bad, they are all alike."""
    some = images[: _alike(images)].astype(np.float32) / 255
    pairs = np.asarray(ssim_pairs(some, some))
    return float(pairs[~np.eye(len(some), dtype=bool)].mean())
