"""KID and Frechet distance of two sets of features. NumPy float64; float [N, D] and [M, D] in, plain numbers out."""

import numpy as np


def kid(a, b, *, subset: int | None = None, subsets: int = 100, seed: int = 0) -> float:
    """Return the kernel inception distance: unbiased polynomial MMD^2 of the whole sets, or its mean over random
    subsets.

    subset: images of each subset; None: the whole sets, which has the least variance.
    Returns: 0 in expectation for sets of one distribution, and then often below 0.
    Raises: ValueError for fewer than 2 images in a set, or a subset larger than the data.
    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.
    """
    a, b = _features(a, b)
    _check_sizes(a, b)
    if subset is None:
        return _mmd2_of_features(a, b)
    if not 2 <= subset <= min(len(a), len(b)):
        raise ValueError(f"a subset is 2 to {min(len(a), len(b))} images, as many as there are, not {subset}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        values.append(_mmd2_of_features(*(s[rng.choice(len(s), subset, replace=False)] for s in (a, b))))
    return float(np.mean(values))


def _mmd2_of_features(a, b):
    return mmd2(polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b))


def polynomial_kernel(a, b) -> np.ndarray:
    """Return (a . b / D + 1)^3 of all pairs, float64 [N, M].

    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.
    """
    a, b = _features(a, b)
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd2(aa, bb, ab, counts_a=None, counts_b=None) -> float:
    """Return the unbiased MMD^2 of two sets from their kernel matrices [N, N], [M, M] and [N, M].

    counts_a, counts_b: how often each image is in a resample. A pair of an image with itself never counts, or repeated
    images would look alike. NaN if a set has one distinct image.
    Source: Gretton et al., "A kernel two-sample test", JMLR 13, 2012, lemma 6.
    """
    u = np.ones(len(aa)) if counts_a is None else np.asarray(counts_a, float)
    v = np.ones(len(bb)) if counts_b is None else np.asarray(counts_b, float)
    cross = (u @ ab @ v) / (u.sum() * v.sum())
    return float(mean_over_pairs(aa, u) + mean_over_pairs(bb, v) - 2 * cross)


def mean_over_pairs(matrix, counts) -> float:
    """Return the mean of a symmetric [N, N] over pairs of distinct images, weighted by counts [N]; NaN if none."""
    pairs = counts.sum() ** 2 - np.square(counts).sum()
    total = counts @ matrix @ counts - np.square(counts) @ np.diagonal(matrix)
    return float(total / pairs) if pairs > 0 else float("nan")


def frechet(a, b, counts_a=None, counts_b=None) -> float:
    """Return |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), S the covariances with N - 1.

    The trace of the root is the sum of the singular values of A B^T, A and B the centered sets over sqrt(N - 1): no
    matrix root, so never NaN, also with fewer images than features. Small sets make it larger: compare equal sizes.
    counts_a, counts_b: how often each image is in a resample.
    Returns: at least 0. Raises: ValueError for fewer than 2 images in a set.
    Source: Dowson and Landau 1982; Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017.
    """
    a, b = _features(a, b)
    _check_sizes(a, b)
    (mean_a, a), (mean_b, b) = _center(a, counts_a), _center(b, counts_b)
    total = np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum()
    if a.shape[1] < min(len(a), len(b)):  # triangular factors have the same covariances, and are then smaller
        a, b = np.linalg.qr(a, mode="r"), np.linalg.qr(b, mode="r")
    return float(max(total - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum(), 0))


def _center(a, counts):
    """Return the mean, and a matrix A [K, D] with the covariance A^T A."""
    if counts is None:
        mean, weight = a.mean(axis=0), 1
    else:
        a, counts = a[counts > 0], counts[counts > 0]
        mean, weight = counts @ a / counts.sum(), np.sqrt(counts)[:, None]
    n = len(a) if counts is None else counts.sum()
    return mean, (a - mean) * weight / np.sqrt(n - 1)


def _features(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features are {a.shape} and {b.shape}; they must be [N, D] and [M, D]")
    return a, b


def _check_sizes(a, b):
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} images; a set needs at least 2")
