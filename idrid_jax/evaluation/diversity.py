"""MS-SSIM within a set of images: high if they are all alike."""

import jax.numpy as jnp
import numpy as np

from idrid_jax.evaluation.image_quality import ssim_pairs

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
WINDOW = 11


def ms_ssim_pairs(a, b) -> np.ndarray:
    """Return the MS-SSIM of every a[i] with every b[j]: float64 [N, M] in [0, 1].

    Contrast and structure at every scale, luminance at the coarsest; 2x2 means halve the scales; a negative mean counts
    as 0. Images that allow fewer than five scales use the first weights, divided by their sum.
    Args: float [N, H, W, C] and [M, H, W, C] in [0, 1]. Raises: ValueError for images below 11 pixels, or as `ssim`.
    Source: Wang et al., "Multiscale structural similarity", Asilomar 2003; Odena et al., ICML 2017, section 4.2.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    used = num_scales(min(a.shape[1:3]))
    if not used:
        raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} are smaller than the {WINDOW}x{WINDOW} window of SSIM")
    weights = np.array(WEIGHTS[:used]) / sum(WEIGHTS[:used])
    out = np.ones((len(a), len(b)))
    for scale, weight in enumerate(weights):
        last = scale == used - 1
        value = ssim_pairs(a, b) if last else ssim_pairs(a, b, alpha=0)  # without luminance
        out *= np.maximum(np.asarray(value, np.float64), 0) ** weight
        if not last:
            a, b = _halve(a), _halve(b)
    return out


def num_scales(size: int) -> int:
    """Return how many of the five scales images of smaller side `size` allow: the coarsest still holds the window."""
    return sum(size // 2**s >= WINDOW for s in range(len(WEIGHTS)))


def _halve(x):
    h, w = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * h, : 2 * w].reshape(len(x), h, 2, w, 2, -1).mean(axis=(2, 4))
