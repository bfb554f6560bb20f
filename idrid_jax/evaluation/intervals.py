"""Bootstrap percentile intervals over images.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. A resample is a vector of counts
(how often each image is in it), so that kernels and distances that are computed once serve all resamples.
"""

import numpy as np

LEVEL = 0.95


def resample_counts(rng: np.random.Generator, num_images: int, resamples: int) -> np.ndarray:
    """Return int64 [resamples, num_images]: how often each image is in each resample with replacement."""
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)


def percentile_interval(
    values, *, center: float | None = None, minimum: float | None = None, maximum: float | None = None
) -> list[float] | None:
    """Return [low, high], the middle 95 % of the resampled values; None if none is finite.

    center: shift the values so that this is their mean. For statistics that grow with repeated images (Frechet and
    Wasserstein distances): the interval could otherwise exclude its own estimate.
    minimum, maximum: bounds of the statistic, to which the values are clipped.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if center is not None:
        values = values - values.mean() + center
    if minimum is not None:
        values = np.maximum(values, minimum)
    if maximum is not None:
        values = np.minimum(values, maximum)
    tail = (1 - LEVEL) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
