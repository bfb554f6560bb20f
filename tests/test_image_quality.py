"""PSNR and SSIM against scikit-image, tf.image and a float64 formula; properties; derivatives; all-pairs forms."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from idrid_jax.evaluation import image_quality
from idrid_jax.evaluation.image_quality import psnr, psnr_pairs, ssim, ssim_pairs

TOLERANCE = 1e-4
few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def noise_images(seed, shape):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def smooth_images(seed, shape):
    """Blurred noise inside a disc on black: like a photograph, flat where it is black."""
    n, h, w, c = shape
    x = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, h / 12, w / 12, 0))
    x = 0.5 + 0.15 * x / x.std()
    y, z = np.mgrid[:h, :w]
    disc = (y - h / 2) ** 2 + (z - w / 2) ** 2 < (0.45 * w) ** 2
    return (np.clip(x, 0, 1) * disc[None, :, :, None]).astype(np.float32)


def photographs(size, channels):
    root = os.environ.get("IDRID_DIR")
    files = sorted(Path(root).glob("B*/1*/a*/*.jpg"))[:6] if root else []
    if len(files) < 6:
        pytest.skip("needs IDRID_DIR, a release with photographs")
    mode = "L" if channels == 1 else "RGB"
    images = [np.asarray(Image.open(f).convert(mode).resize((size, size), Image.Resampling.LANCZOS)) for f in files]
    return np.stack(images).reshape(6, size, size, channels).astype(np.float32) / 255


CASES = [
    ("noise", 28, 1),
    ("smooth", 45, 3),
    pytest.param(("smooth", 128, 3), marks=pytest.mark.slow),  # the bands of an image of several strips
    *(pytest.param(("real", *size), marks=pytest.mark.real_data) for size in ((28, 1), (45, 3), (128, 3))),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def images(request):
    kind, size, channels = request.param
    if kind == "real":
        return photographs(size, channels)
    return {"noise": noise_images, "smooth": smooth_images}[kind](size, (6, size, size + 3, channels))


def test_against_scikit_image(images):
    metrics = pytest.importorskip("skimage.metrics")
    a, b = images[:3], images[3:]
    for scale in (1.0, 255.0):
        x, y = a.astype(np.float64) * scale, b.astype(np.float64) * scale
        want = [
            metrics.structural_similarity(
                p, q, data_range=scale, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
            )
            for p, q in zip(x, y)
        ]
        np.testing.assert_allclose(ssim(a * scale, b * scale, data_range=scale), want, atol=TOLERANCE)
        want = [metrics.peak_signal_noise_ratio(p, q, data_range=scale) for p, q in zip(x, y)]
        np.testing.assert_allclose(psnr(a * scale, b * scale, data_range=scale), want, atol=TOLERANCE)


@pytest.mark.peer
def test_against_tf_image(images):
    tf = pytest.importorskip("tensorflow")
    a, b = images[:3], images[3:]
    np.testing.assert_allclose(ssim(a, b), tf.image.ssim(a, b, 1.0), atol=TOLERANCE)
    np.testing.assert_allclose(psnr(a, b), tf.image.psnr(a, b, 1.0), atol=TOLERANCE)
    want = tf.image.ssim(a, b, 1.0, filter_size=7, filter_sigma=2.0)
    np.testing.assert_allclose(ssim(a, b, window=7, sigma=2.0), want, atol=TOLERANCE)


def reference_ssim(a, b, alpha, beta, gamma):
    """The thesis's formula in float64, with SciPy's filter, sign-preserving for fractional exponents."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    blur = partial(ndimage.gaussian_filter, sigma=1.5, radius=5, axes=(1, 2))
    inside = np.s_[:, 5:-5, 5:-5]
    mean_a, mean_b = blur(a)[inside], blur(b)[inside]
    var_a, var_b = (np.maximum(blur(x * x)[inside] - m * m, 0) for x, m in ((a, mean_a), (b, mean_b)))
    cov = blur(a * b)[inside] - mean_a * mean_b
    c1, c2, c3 = 1e-4, 9e-4, 4.5e-4
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * np.sqrt(var_a * var_b) + c2) / (var_a + var_b + c2)
    structure = (cov + c3) / (np.sqrt(var_a * var_b) + c3)
    power = np.power(structure, gamma) if float(gamma).is_integer() else np.sign(structure) * np.abs(structure) ** gamma
    return (luminance**alpha * contrast**beta * power).mean(axis=(1, 2, 3))


EXPONENTS = [(1, 1, 1), (0.5, 0.5, 0.5), (1, 0.3, 2), (0, 0, 1)]


@pytest.mark.parametrize("exponents", EXPONENTS)
def test_exponents_follow_the_formula(images, exponents):
    a, b = images[:3], images[3:]
    names = dict(zip(("alpha", "beta", "gamma"), exponents))
    np.testing.assert_allclose(ssim(a, b, **names), reference_ssim(a, b, *exponents), atol=TOLERANCE)


def test_negative_structure_term():
    a = noise_images(0, (1, 28, 28, 1))
    b = 1 - a  # the negative: structure near -1 everywhere
    assert ssim(a, b)[0] < -0.8
    assert ssim(a, b, gamma=0.5)[0] < -0.8  # a fractional exponent keeps the sign
    assert ssim(a, b, gamma=2)[0] > 0.8  # a whole one is an ordinary power
    assert ssim(a, b, gamma=3)[0] < -0.8


def test_three_factors_continue_two(images):
    a, b = images[:3], images[3:]
    np.testing.assert_allclose(ssim(a, b, gamma=1 + 1e-7), ssim(a, b), atol=1e-5)


@few
@given(seeds, st.sampled_from([(11, 11, 1), (14, 25, 3)]))
def test_symmetric_and_in_range(seed, shape):
    a, b = noise_images(seed, (2, 2, *shape))
    b = b * np.random.default_rng(seed).random()
    for measure in (ssim, psnr, partial(ssim, gamma=0.5)):
        np.testing.assert_allclose(measure(a, b), measure(b, a), atol=1e-5)
    assert np.all(np.abs(ssim(a, b)) <= 1 + 1e-5)
    assert np.all(psnr(a, b) <= 100)


@few
@given(seeds)
def test_equal_images(seed):
    a = smooth_images(seed, (2, 16, 20, 3))
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-5)
    np.testing.assert_allclose(ssim(a, a, gamma=0.7), 1, atol=1e-5)
    np.testing.assert_allclose(psnr(a, a), 100, atol=1e-4)


@few
@given(seeds, st.sampled_from([1e-3, 0.3, 2.0, 255.0, 65535.0]))
def test_scale_goes_with_data_range(seed, scale):
    a, b = noise_images(seed, (2, 2, 13, 14, 1))
    x, y = np.float32(scale) * a, np.float32(scale) * b
    np.testing.assert_allclose(psnr(x, y, data_range=scale), psnr(a, b), atol=1e-3)
    np.testing.assert_allclose(ssim(x, y, data_range=scale), ssim(a, b), atol=1e-4)


@few
@given(seeds)
def test_more_noise_lowers_both(seed):
    a = smooth_images(seed, (1, 32, 32, 1))
    noise = np.random.default_rng(seed + 1).normal(size=a.shape).astype(np.float32)
    for measure in (ssim, psnr):
        values = [float(measure(a, a + level * noise)[0]) for level in (0.01, 0.03, 0.1, 0.3)]
        assert values == sorted(values, reverse=True)


def test_psnr_by_hand():
    a = jnp.zeros((3, 4, 4, 1))
    b = jnp.stack([jnp.full((4, 4, 1), v) for v in (1.0, 0.1, 0.0)])
    np.testing.assert_allclose(psnr(a, b), [0, 20, 100], atol=1e-5)


@pytest.mark.parametrize("measure", [psnr, ssim, partial(ssim, alpha=0.5, beta=1.5, gamma=0.5)])
def test_derivative_against_finite_differences(measure):
    with jax.enable_x64(True):
        a, b = (x.astype(np.float64) for x in noise_images(3, (2, 2, 15, 13, 2)))
        b = 0.7 * a + 0.3 * b
        value = lambda x: measure(x, b).sum()
        slope = jax.grad(value)(a)
        assert slope.dtype == np.float64
        rng = np.random.default_rng(0)
        for _ in range(5):
            direction = rng.normal(size=a.shape)
            numeric = (value(a + 1e-6 * direction) - value(a - 1e-6 * direction)) / 2e-6
            np.testing.assert_allclose((slope * direction).sum(), numeric, rtol=1e-5)


@pytest.mark.parametrize("exponents", [{}, {"alpha": 2, "beta": 0.5, "gamma": 3}])
def test_derivatives_are_finite_on_flat_and_equal_images(exponents):
    flat = jnp.full((1, 16, 16, 1), 0.3)
    textured = jnp.asarray(smooth_images(0, (1, 16, 16, 1)))
    for a in (jnp.zeros_like(flat), flat, textured):
        for b in (jnp.zeros_like(flat), flat, jnp.ones_like(flat), textured):
            for measure in (psnr, partial(ssim, **exponents)):
                value, slopes = jax.value_and_grad(lambda x, y: measure(x, y).sum(), argnums=(0, 1))(a, b)
                assert np.isfinite(value) and all(np.isfinite(s).all() for s in slopes)
    assert not np.any(jax.grad(lambda x: psnr(x, flat).sum())(flat))


def test_jit_vmap_and_grad_together():
    a, b = noise_images(1, (2, 3, 2, 16, 16, 1))
    for measure in (psnr, ssim):
        slope = jax.jit(jax.vmap(jax.grad(lambda x, y: measure(x, y).mean())))(a, b)
        assert slope.shape == a.shape and np.isfinite(slope).all() and np.abs(slope).max() > 0
        np.testing.assert_allclose(jax.vmap(measure)(a, b)[1], measure(a[1], b[1]), atol=1e-5)


@pytest.mark.parametrize(
    "shape, exponents", [((28, 28, 1), {}), ((20, 33, 3), {"beta": 0.5, "gamma": 2}), ((90, 70, 2), {})]
)
def test_pairs_equal_the_function_of_each_pair(monkeypatch, shape, exponents):
    monkeypatch.setattr(image_quality, "BLOCK_BYTES", 4 * int(np.prod(shape)) * 6)  # blocks of 2 x 3, the last padded
    jax.clear_caches()  # the size of a block is compiled in
    a, b = smooth_images(0, (5, *shape)), smooth_images(1, (7, *shape))
    got_ssim, got_psnr = ssim_pairs(a, b, **exponents), psnr_pairs(a, b)
    assert got_ssim.shape == got_psnr.shape == (5, 7) and got_ssim.dtype == np.float32
    for i in range(5):
        np.testing.assert_allclose(got_ssim[i], ssim(np.repeat(a[i : i + 1], 7, axis=0), b, **exponents), atol=1e-5)
        np.testing.assert_allclose(got_psnr[i], psnr(np.repeat(a[i : i + 1], 7, axis=0), b), atol=1e-4)


@pytest.mark.parametrize("n, m, pairs", [(1, 1, 1), (5, 7, 1), (408, 408, 2674), (500, 3, 100), (1, 90, 4)])
def test_blocks_cover_all_and_stay_in_their_bytes(n, m, pairs):
    side_a, side_b = image_quality._block(n, m, image_quality.BLOCK_BYTES // pairs)
    assert 1 <= side_a <= n and 1 <= side_b <= m and side_a * side_b <= pairs


def test_pairs_keep_near_equal_images():
    a = smooth_images(0, (3, 28, 28, 1))
    near = a + np.float32(1e-4) * np.sign(noise_images(1, a.shape) - 0.5)
    np.testing.assert_allclose(np.diag(psnr_pairs(a, a)), 100, atol=1e-4)
    np.testing.assert_allclose(np.diag(psnr_pairs(a, near)), 80, atol=0.02)  # float32 rounds the steps themselves
    np.testing.assert_allclose(np.diag(ssim_pairs(a, a)), 1, atol=1e-5)


def test_half_precision_is_computed_in_float32():
    a, b = noise_images(0, (2, 2, 16, 16, 1))
    for dtype in (jnp.bfloat16, jnp.float16):
        x, y = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        assert ssim(x, y).dtype == psnr(x, y).dtype == np.float32
        np.testing.assert_allclose(ssim(x, y), ssim(x.astype(np.float32), y.astype(np.float32)), atol=1e-6)


def test_errors_name_the_numbers():
    a = np.zeros((2, 16, 16, 1), np.float32)
    for measure in (psnr, ssim, psnr_pairs, ssim_pairs):
        with pytest.raises(ValueError, match="uint8.*divide by 255"):
            measure(a.astype(np.uint8), a)
        with pytest.raises(ValueError, match="int32"):
            measure(a, a.astype(np.int32))
        with pytest.raises(ValueError, match=r"\(16, 16, 1\).*four axes"):
            measure(a[0], a[0])
        with pytest.raises(ValueError, match=r"\(16, 16, 1\).*\(16, 15, 1\)"):
            measure(a, a[:, :, 1:])
        with pytest.raises(ValueError, match="data_range is 0"):
            measure(a, a, data_range=0)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="2 and 1.*_pairs"):
            measure(a, a[:1])
    for measure in (psnr_pairs, ssim_pairs):
        with pytest.raises(ValueError, match="2 images and b 0"):
            measure(a, a[:0])
    for measure in (ssim, ssim_pairs):
        with pytest.raises(ValueError, match="10x16 are smaller than the 11x11 window"):
            measure(a[:, :10], a[:, :10])
        for option in ({"window": 10}, {"sigma": 0}, {"gamma": -1}, {"alpha": float("nan")}):
            with pytest.raises(ValueError, match=next(iter(option))):
                measure(a, a, **option)
