"""Precision, recall, density and coverage by balls of nearest neighbors in feature space. NumPy float64; pure.

Each is the mean of one value per image. Those values are returned, so that a bootstrap can resample them with the balls
fixed (a repeated image would have a ball of radius 0).
"""

import numpy as np
from scipy.spatial.distance import cdist

K = 5  # Naeem et al. 2020, section 4; Kynkaanniemi et al. 2019 use 3


def prdc(fake_fake, real_real, fake_real, *, k: int) -> dict[str, np.ndarray]:
    """Return the values per image of the four measures; each measure is the mean of its values.

    Args: distances float [N, N], [M, M], [N, M]; k in 1..min(N, M)-1.
    Returns: "precision" [N] (0 or 1: the fake lies in a real image's ball), "recall" [M] (the real image lies in a
      fake's ball), "density" [N] (number of real balls that the fake lies in, over k), "coverage" [M] (a fake lies in
      the real image's ball).
    Raises: ValueError for another k.
    Source: Kynkaanniemi et al., "Improved precision and recall metric", NeurIPS 2019, section 2; Naeem et al.,
      "Reliable fidelity and diversity metrics", ICML 2020, section 3.
    """
    fake_real = np.asarray(fake_real)
    in_real = fake_real <= radii(real_real, k)[None, :]
    in_fake = fake_real <= radii(fake_fake, k)[:, None]
    return {
        "precision": in_real.any(axis=1).astype(float),
        "recall": in_fake.any(axis=0).astype(float),
        "density": in_real.sum(axis=1) / k,
        "coverage": in_real.any(axis=0).astype(float),
    }


def choose_k(num_images: int, k: int = K) -> int:
    """Return k, or fewer if the set is smaller; 0 if it has no pair."""
    return max(0, min(k, num_images - 1))


def distances(a, b) -> np.ndarray:
    """Return the Euclidean distances of all pairs of float [N, D] and [M, D], float64 [N, M]; exactly 0 if equal."""
    # by differences, not |a|^2 + |b|^2 - 2ab: near pairs decide here
    return cdist(np.asarray(a, np.float64), np.asarray(b, np.float64))


def radii(among, k: int) -> np.ndarray:
    """Return the distance of each image to its k-th nearest other one, [N]; among: float [N, N], k in 1..N-1. Raises
    ValueError for another k."""
    among = np.array(among, np.float64)
    if not 1 <= k < len(among):
        raise ValueError(f"k is {k} with {len(among)} images; it is 1 to one less than the images")
    np.fill_diagonal(among, np.inf)
    return np.partition(among, k - 1, axis=1)[:, k - 1]
