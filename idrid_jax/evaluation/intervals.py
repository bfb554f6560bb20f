"""Percentile intervals of a statistic over resampled images. Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13. Each resample is a vector of counts, how often each image was drawn, so that kernels and distances
computed once serve all of them."""

import numpy as np

LEVEL = 0.95


def counts(rng: np.random.Generator, images: int, resamples: int) -> np.ndarray:
    """int64 [resamples, images], each row the counts of `images` draws with replacement."""
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples)


def interval(
    values, *, centre: float | None = None, floor: float | None = None, most: float | None = None
) -> list[float] | None:
    """[low, high], the middle 95 % of the resampled values; None where none is finite.

    centre: shifts the values so that this is their mean. For statistics that grow with repeated images (Frechet and
    Wasserstein distances): as they are, their interval can leave out the very estimate it belongs to.
    floor, most: the least and the largest value the statistic can have.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if centre is not None:
        values = values - values.mean() + centre
    if floor is not None:
        values = np.maximum(values, floor)
    if most is not None:
        values = np.minimum(values, most)
    tail = (1 - LEVEL) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
