"""KID and Frechet distance of two sets of features. NumPy float64; float [N, D] and [M, D] in, plain numbers out."""

import numpy as np


def polynomial_kernel(a, b) -> np.ndarray:
    """(a . b / D + 1)^3 of all pairs: float64 [N, M].

    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.
    """
    a, b = _features(a, b)
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd2(aa, bb, ab, counts_a=None, counts_b=None) -> float:
    """Unbiased MMD^2 of two sets from their kernel matrices [N, N], [M, M], [N, M].

    counts_a, counts_b: how often each image counts (of a resample); a pair of an image with itself never does, or
    repeats would pass for likeness. NaN where a set has one distinct image.
    Source: Gretton et al., "A kernel two-sample test", JMLR 13, 2012, lemma 6.
    """
    u = np.ones(len(aa)) if counts_a is None else np.asarray(counts_a, float)
    v = np.ones(len(bb)) if counts_b is None else np.asarray(counts_b, float)
    return float(within(aa, u) + within(bb, v) - 2 * (u @ ab @ v) / (u.sum() * v.sum()))


def within(matrix, counts) -> float:
    """Mean of a symmetric [N, N] over pairs of distinct images, weighted by counts [N]; NaN where there is none."""
    pairs = counts.sum() ** 2 - np.square(counts).sum()
    total = counts @ matrix @ counts - np.square(counts) @ np.diagonal(matrix)
    return float(total / pairs) if pairs > 0 else float("nan")


def kid(a, b, *, subset: int | None = None, subsets: int = 100, seed: int = 0) -> float:
    """Kernel Inception distance: unbiased polynomial MMD^2, of the whole sets or the mean over random subsets.

    subset: images of each subset; None takes the whole sets, which has the least variance.
    Returns: 0 in expectation for sets of one distribution, and often below 0 then.
    Raises: ValueError for fewer than 2 images in a set, or a subset larger than the data.
    Source: Binkowski et al. 2018, section 4.
    """
    a, b = _features(a, b)
    _least(a, b)
    if subset is None:
        return mmd2(polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b))
    if not 2 <= subset <= min(len(a), len(b)):
        raise ValueError(f"a subset is 2 to {min(len(a), len(b))} images, as many as there are, not {subset}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (s[rng.choice(len(s), subset, replace=False)] for s in (a, b))
        values.append(mmd2(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)))
    return float(np.mean(values))


def frechet(a, b, counts_a=None, counts_b=None) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), S the covariances with N - 1.

    The trace of the root is the sum of the singular values of A B^T, A and B the centred sets over sqrt(N - 1): no
    matrix root, so never NaN, also for fewer images than features. Small sets make it larger: compare equal sizes.
    counts_a, counts_b: how often each image counts (of a resample).
    Returns: at least 0. Raises: ValueError for fewer than 2 images in a set.
    Source: Dowson and Landau 1982; Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017.
    """
    a, b = _features(a, b)
    _least(a, b)
    (mean_a, a), (mean_b, b) = _centred(a, counts_a), _centred(b, counts_b)
    total = np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum()
    if a.shape[1] < min(len(a), len(b)):  # triangles have the sets' covariances, and are smaller then
        a, b = np.linalg.qr(a, mode="r"), np.linalg.qr(b, mode="r")
    return float(max(total - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum(), 0))


def _centred(a, counts):
    """The mean, and a matrix [some, D] whose product with itself is the covariance."""
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
        raise ValueError(f"features are {a.shape} and {b.shape}; they are [N, D] and [M, D]")
    return a, b


def _least(a, b):
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} images; a set needs at least 2")
