"""Distances that need no network: sliced Wasserstein on Laplacian pyramids, and between radial power spectra."""

import numpy as np
from scipy import ndimage

PATCH, PATCHES, DIRECTIONS, QUANTILES = 7, 16, 64, 512
BATCH = 32  # images as floats at a time: large splits would fill the memory
MIN_SIDE = 16  # of the coarsest level, Karras et al. 2018


def laplacian_pyramid(images) -> list[np.ndarray]:
    """Return the levels of uint8 [N, R, R, C] at R, R/2, ... down to 16 pixels or more, float32; all but the last hold
    the difference from the next. Source: Burt and Adelson, "The Laplacian pyramid", 1983, with their 5-tap filter."""
    x = np.asarray(images, np.float32)
    levels = []
    while min(x.shape[1:3]) // 2 >= MIN_SIDE:
        small = _smooth(x)[:, ::2, ::2]
        up = np.zeros_like(x)
        up[:, ::2, ::2] = small * 4
        levels.append(x - _smooth(up))
        x = small
    return [*levels, x]


def _smooth(x):
    taps = np.array([1, 4, 6, 4, 1], np.float32) / 16
    return ndimage.correlate1d(ndimage.correlate1d(x, taps, axis=1, mode="mirror"), taps, axis=2, mode="mirror")


def descriptors(images, seed: int = 0) -> list[np.ndarray]:
    """Return patches at random places of each level of the pyramid of uint8 [N, R, R, C], float32 [N, 16, 7 * 7 * C]
    per level. The places depend on the seed, not on the images."""
    rngs = [np.random.default_rng([seed, number, 0]) for number in range(20)]  # more than there are levels
    places, parts = [], []
    for start in range(0, len(images), BATCH):
        levels = laplacian_pyramid(images[start : start + BATCH])
        places = places or [_places(level.shape, len(images), rng) for level, rng in zip(levels, rngs)]
        at = slice(start, start + BATCH)
        parts.append([_cut(level, ys[at], xs[at]) for level, (ys, xs) in zip(levels, places)])
    return [np.concatenate(level) for level in zip(*parts)]


def _places(shape, n, rng):
    """Return the upper left corners of the patches of n images: rows and columns, int [n, PATCHES]."""
    side = min(PATCH, *shape[1:3])
    return tuple(rng.integers(size - side + 1, size=(n, PATCHES)) for size in shape[1:3])


def _cut(level, ys, xs):
    n, h, w, c = level.shape
    side = min(PATCH, h, w)
    dy, dx = np.mgrid[:side, :side]
    rows, columns = ys[..., None, None] + dy, xs[..., None, None] + dx
    return level[np.arange(n)[:, None, None, None], rows, columns].reshape(n, PATCHES, side * side * c)


class Slices:
    """One set's descriptors projected on random directions, sorted once, so that a resample needs no sorting."""

    def __init__(self, described, channels: int, directions, scale):
        """described [N, P, F]; directions [F, S] of unit length; scale (mean, sd) per channel."""
        mean, sd = scale
        n, p, f = described.shape
        flat = (described.reshape(n, p, -1, channels) - mean) / sd
        values = (flat.reshape(n * p, f) @ directions).T  # [S, N P]
        order = np.argsort(values, axis=1)
        self.values = np.take_along_axis(values, order, axis=1)
        self.image = order // p

    def quantiles(self, counts=None) -> np.ndarray:
        """Return the quantiles along each direction, [S, 512]. counts: int [N] of a resample, with sum N."""
        values = self.values
        if counts is not None:
            values = np.repeat(values.ravel(), counts[self.image].ravel()).reshape(values.shape)
        n = values.shape[1]
        return values[:, ((np.arange(QUANTILES) + 0.5) / QUANTILES * n).astype(int)]


def slices(images, reference, *, seed: int = 0) -> list[tuple[Slices, Slices]]:
    """Return the slices of both sets, uint8 [N, R, R, C] and [M, R, R, C], at each level of the pyramid.

    Descriptors are standardized per channel by the reference's mean and standard deviation (Karras et al.: by each
    set's own, which would hide a difference of color or contrast).
    """
    pairs = []
    c = np.shape(images)[-1]
    # the same places in both sets, so that a set is at distance 0 from itself
    for number, (da, db) in enumerate(zip(descriptors(images, seed), descriptors(reference, seed))):
        rng = np.random.default_rng([seed, number, 1])
        directions = rng.standard_normal((da.shape[-1], DIRECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        by_channel = db.reshape(-1, c)
        scale = by_channel.mean(axis=0), by_channel.std(axis=0) + 1e-6
        pairs.append((Slices(da, c, directions, scale), Slices(db, c, directions, scale)))
    return pairs


def sliced_wasserstein(pairs, counts_a=None, counts_b=None) -> list[float]:
    """Return the 1-Wasserstein distance at each level of `slices`, the mean over directions, in standard deviations of
    the reference's patches. counts_a, counts_b: of a resample.

    Source: Karras et al., "Progressive growing of GANs", ICLR 2018, section 5; Rabin et al. 2011.
    """
    return [float(np.abs(a.quantiles(counts_a) - b.quantiles(counts_b)).mean()) for a, b in pairs]


def radial_spectrum(images) -> np.ndarray:
    """Return the power at each whole radius from 1 to R/2 - 1 in dB, float64 [N, R // 2 - 1], of uint8 [N, R, R, C]:
    the mean over angles and channels, each channel minus its mean, under a Hann window.

    Source: Durall et al., "Watch your up-convolution", CVPR 2020, section 3 (azimuthal integration).
    """
    n, r = np.shape(images)[:2]
    window = np.hanning(r)[:, None] * np.hanning(r)[None]
    frequency = np.fft.fftfreq(r) * r
    radius = np.rint(np.hypot(frequency[:, None], frequency[None])).astype(int)
    out = np.zeros((n, r // 2 - 1))
    for i, image in enumerate(images):
        image = np.asarray(image, np.float64) / 255
        image = (image - image.mean(axis=(0, 1))) * window[..., None]
        power = np.square(np.abs(np.fft.fft2(image, axes=(0, 1)))).mean(axis=-1)
        total = np.bincount(radius.ravel(), power.ravel())[1 : r // 2]
        out[i] = 10 * np.log10(total / np.bincount(radius.ravel())[1 : r // 2] + 1e-9)
    return out


def spectrum_distance(a, b, counts_a=None, counts_b=None) -> float:
    """Return the root mean square over radii of the difference of the mean spectra [N, K] and [M, K], in dB."""
    mean_a, mean_b = (np.average(x, axis=0, weights=w) for x, w in ((a, counts_a), (b, counts_b)))
    return float(np.sqrt(np.square(mean_a - mean_b).mean()))
