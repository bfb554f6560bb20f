"""Metrics of a training snapshot: distance to photographs, diversity, and copies of training photographs.

    kid_imagenet, diversity KID, and spread, by the installed ImageNet features; if `checkpoint.best` is `kid_imagenet`
                            (the default) or `on_collapse` is `stop`
    copy_rate, rejected     share of generated images that are copies; 1 if there are too many
    ssim_within, ssim_excess, ssim_gap
                            mean SSIM between generated images; minus that between photographs; its absolute value

The reference is the validation fold of the training photographs (`config.data.validation_folds`), which the networks
never see. Held-out photographs (the test split, or fold `config.data.held_out_fold`) are not read. To add a metric,
compute it in `SnapshotMetrics.__call__` and, if lower is better, add its name to `names`.
"""

from collections.abc import Callable

import numpy as np

from idrid_jax.data.cache import Split
from idrid_jax.evaluation import distances, memorization
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.image_quality import ssim_pairs

SSIM_IMAGES = 60  # images whose pairs SSIM compares at 128 pixels and below, fewer above, to stay within seconds
MIN_VALIDATION = 10  # validation photographs; with fewer, the training photographs are the reference


class SnapshotMetrics:
    """Computes the metrics of a snapshot; `loop.train` calls it with the images that it generated.

    kid_imagenet: unbiased KID to the validation photographs (not times 1000), to the training photographs if the former
      are fewer than `MIN_VALIDATION`. The features take about 25 ms an image on a CPU core.
    diversity: total variance of the features over the generated images, divided by that over the same photographs.
    copy_rate: share of generated images whose `memorization` similarity is at least `COPY`.
    rejected: 1 if `copy_rate` is above `memorization.allowed_copy_rate`, so that the snapshot must not be chosen; else
      0.
    ssim_within: mean SSIM between generated images. ssim_excess: minus that between as many training photographs.
    ssim_gap: the absolute value of ssim_excess.
    """

    names = ("kid_imagenet", "copy_rate", "ssim_within", "ssim_gap")  # lower is better; for `checkpoint.best`

    def __init__(
        self,
        *,
        best: str = "kid_imagenet",
        stop_on_collapse: bool = False,
        log: Callable[[str], None] = lambda text: None,
    ):
        """best: `config.checkpoint.best`. stop_on_collapse: whether `config.on_collapse` is "stop", which needs
        `diversity`. log: receives a line if there are too few validation photographs.

        Raises UserError if these need the ImageNet features, whose weights are not installed.
        """
        needed = stop_on_collapse or best == "kid_imagenet"
        self._imagenet = pretrained.load(pretrained.IMAGENET) if needed else None
        self._log, self._reference = log, None

    def __call__(self, fakes: np.ndarray, grades: np.ndarray, training: Split, validation: Split) -> dict[str, float]:
        """Return the metrics of generated images.

        A metric that needs more photographs than there are is absent. The reference is computed at the first call and
        reused.

        Args: fakes: uint8 [N, R, R, C], N at least 2. grades: int32 [N], requested. training, validation: photographs
          that the networks are trained on, and those of the validation fold, perhaps none.
        """
        if self._reference is None:
            self._reference = _Reference(training, validation, self._imagenet, self._log)
        reference, metrics = self._reference, {}
        if self._imagenet is not None:
            features = self._imagenet.extract(fakes)
            metrics["kid_imagenet"] = distances.kid(features, reference.features)
            metrics["diversity"] = _spread(features) / max(_spread(reference.features), 1e-12)
        if reference.memorization is not None:
            copy_rate = float((reference.memorization.similarity(fakes) >= memorization.COPY).mean())
            metrics |= {
                "copy_rate": copy_rate,
                "rejected": float(copy_rate > memorization.allowed_copy_rate(len(fakes))),
            }
        metrics["ssim_within"] = ssim_within(fakes)
        if reference.ssim_within is not None:
            excess = metrics["ssim_within"] - reference.ssim_within
            metrics |= {"ssim_excess": excess, "ssim_gap": abs(excess)}
        return metrics


class _Reference:
    """What depends on the photographs alone."""

    def __init__(self, training, validation, imagenet, log):
        images = np.asarray(training.images)
        enough = len(validation.grades) >= MIN_VALIDATION
        compared = np.asarray(validation.images) if enough else images
        if not enough:
            log(
                f"{len(validation.grades)} validation photographs, fewer than {MIN_VALIDATION}: snapshots are compared "
                "with the training photographs"
            )
        self.features = None if imagenet is None else imagenet.extract(compared)
        self.memorization = memorization.TrainingPhotographs(images) if len(images) >= memorization.MIN_IMAGES else None
        some = np.linspace(0, len(images) - 1, min(_ssim_images(images), len(images))).astype(int)
        self.ssim_within = ssim_within(images[some]) if len(some) > 1 else None


def _spread(features) -> float:
    """Return the total variance of features [N, D], unbiased: the two sets have different sizes."""
    return float(features.var(axis=0, ddof=1).sum())


def _ssim_images(images) -> int:
    return max(8, int(SSIM_IMAGES * min(1, 128 / images.shape[1])))


def ssim_within(images: np.ndarray) -> float:
    """Return the mean SSIM between the first of images, uint8 [N, R, R, C]: high if they are all alike."""
    some = images[: _ssim_images(images)].astype(np.float32) / 255
    pairs = np.asarray(ssim_pairs(some, some))
    return float(pairs[~np.eye(len(some), dtype=bool)].mean())
