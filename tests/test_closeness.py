"""Closeness: each measure against a float64 oracle or a planted case, and the whole on made-up images."""

import json

import numpy as np
import pytest
import scipy.linalg

from idrid_jax.evaluation import augmentation_leak, closeness, coverage, distances, diversity, intervals, spectra
from idrid_jax.evaluation.features import feature_cache
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.image_quality import ssim

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 6)), RNG.normal(size=(30, 6)) * 1.5 + 0.3


def test_kid_is_the_double_sum():
    def k(x, y):
        return (np.dot(x, y) / 6 + 1) ** 3

    def off(x):
        return np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])

    expected = off(A) + off(B) - 2 * np.mean([k(x, y) for x in A for y in B])
    assert distances.kid(A, B) == pytest.approx(expected, rel=1e-12)
    assert distances.kid(A, B, subset=30, subsets=400) == pytest.approx(expected, rel=0.15)
    with pytest.raises(ValueError, match="2 to 30"):
        distances.kid(A, B, subset=31)


def test_kid_is_unbiased():
    values = [distances.kid(*np.random.default_rng(i).normal(size=(2, 20, 4))) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_resampled_mmd_excludes_repeated_images():
    kernels = [distances.polynomial_kernel(*p) for p in ((A, A), (B, B), (A, B))]
    counts = np.zeros(40)
    counts[:2] = 20
    pair = distances.polynomial_kernel(A, A)[0, 1]
    assert distances.mean_over_pairs(kernels[0], counts) == pytest.approx(pair)
    assert np.isnan(distances.mean_over_pairs(kernels[0], np.eye(40)[0] * 40))


@pytest.mark.parametrize("n", [40, 200])
def test_frechet_equals_the_matrix_root(n):
    a, b = np.random.default_rng(n).normal(size=(2, n, 6)) * np.array([1, 2])[:, None, None]
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_images_than_features():
    a = RNG.normal(size=(5, 64))
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert distances.frechet(a, a + 2) == pytest.approx(4 * 64)


def test_prdc_planted():
    real = RNG.normal(size=(60, 4))
    real[30:] += 50  # two modes
    for fake, expected in ((real, (1, 1, 1)), (real + 1000, (0, 0, 0)), (np.tile(real[:30], (2, 1)), (1, 0.5, 0.5))):
        fake = fake + 1e-3 * RNG.normal(size=fake.shape)
        values = coverage.prdc(*(coverage.distances(*p) for p in ((fake, fake), (real, real), (fake, real))), k=5)
        # repeats have small balls: recall then asks only that the dropped mode is not found
        assert values["precision"].mean() == pytest.approx(expected[0], abs=0.1)
        assert values["recall"].mean() <= expected[1] and values["recall"][30:].mean() <= (expected[1] == 1)
        assert values["coverage"].mean() == pytest.approx(expected[2], abs=0.05)
    with pytest.raises(ValueError, match="k is 60"):
        coverage.radii(np.zeros((60, 60)), 60)


def test_ms_ssim():
    x = RNG.random((3, 24, 24, 1)).astype(np.float32)
    half = x.reshape(3, 12, 2, 12, 2, 1).mean(axis=(2, 4))
    w = np.array([0.0448, 0.2856]) / 0.3304
    cs = max(float(ssim(x[:1], x[1:2], alpha=0)[0]), 0)
    expected = cs ** w[0] * max(float(ssim(half[:1], half[1:2])[0]), 0) ** w[1]
    pairs = diversity.ms_ssim_pairs(x, x)
    assert pairs[0, 1] == pytest.approx(expected, abs=1e-5) and np.allclose(np.diag(pairs), 1, atol=1e-5)
    assert [diversity.num_scales(s) for s in (10, 28, 32, 64, 128, 1024)] == [0, 2, 2, 3, 4, 5]


def test_spectra_planted():
    images = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    assert spectra.sliced_wasserstein(spectra.slices(images, images)) == [0, 0]
    levels = spectra.sliced_wasserstein(spectra.slices(images // 2, images))
    assert min(levels) > 0.2
    power = spectra.radial_spectrum(images // 2 * 2)
    quarter = spectra.radial_spectrum(images // 2)  # half the amplitude: 6.02 dB less at every radius
    assert spectra.spectrum_distance(power, quarter) == pytest.approx(20 * np.log10(2), abs=0.01)
    slices = spectra.slices(images, images)[0][0]
    assert np.array_equal(slices.quantiles(), slices.quantiles(np.ones(12, int)))


def test_batches_do_not_change_the_result(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    whole = spectra.descriptors(images, 1), augmentation_leak.statistics(images)
    for module in (spectra, augmentation_leak):
        monkeypatch.setattr(module, "BATCH", 3)
    for part, level in zip(spectra.descriptors(images, 1), whole[0], strict=True):
        np.testing.assert_array_equal(part, level)
    for name, values in augmentation_leak.statistics(images).items():
        np.testing.assert_array_equal(values, whole[1][name])


def test_intervals_cover_95_percent():
    hits = 0
    for i in range(200):
        rng = np.random.default_rng(i)
        x = rng.normal(size=50)
        low, high = intervals.percentile_interval(intervals.resample_counts(rng, 50, 200) @ x / 50)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99
    clipped = intervals.percentile_interval([0, 2], center=0, minimum=-0.5, maximum=0.5)
    assert clipped == pytest.approx([-0.475, 0.475], abs=0.03)


def test_intervals_of_density_are_as_wide_as_its_spread():
    """Over new sets of the same kind; with fixed balls they would be half as wide and move with the set."""
    extractor, values, widths = FeatureExtractor("n", corners), [], []
    for i in range(60):
        rng = np.random.default_rng(i)
        entry = closeness._neighbors(*rng.normal(size=(2, 80, 8)), rng, 40, extractor)["density"]
        values.append(entry["value"])
        widths.append(np.diff(entry["interval"])[0])
    assert 0.7 < np.mean(widths) / (3.92 * np.std(values)) < 1.6


def corners(images):
    """Features without a network: means and deviations of each quarter, float32 [N, 8 C]."""
    n, size, _, channels = images.shape
    parts = images.reshape(n, 2, size // 2, 2, size // 2, channels).astype(np.float32) / 255
    return np.concatenate([parts.mean((2, 4)), parts.std((2, 4))], axis=-1).reshape(n, -1)


def test_features_are_cached_and_a_torn_file_is_replaced(tmp_path):
    images = RNG.integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    calls = []

    def extract(images):
        calls.append(1)
        return corners(images)

    extractor, other = FeatureExtractor("n", extract), FeatureExtractor("other", extract)
    for _ in range(2):
        found = feature_cache.cached_features(extractor, images, tmp_path)
        assert np.array_equal(found, corners(images))
    assert len(calls) == 1
    feature_cache.cached_features(other, images, tmp_path)
    (tmp_path / feature_cache.cache_key(images, "n") / feature_cache.FILE).write_bytes(b"torn")
    feature_cache.cached_features(extractor, images, tmp_path)
    assert len(calls) == 3


def test_kid_divides_features_by_the_scale_of_their_network():
    real = (RNG.random((24, 1, 1, 3)) * 150 + RNG.random((24, 16, 16, 3)) * 30).astype(np.uint8)
    plain = FeatureExtractor("plain", corners)
    large = FeatureExtractor("large", lambda images: 7 * corners(images), kid_scale=7)
    sets = real[:8], None, real[8:16], None, real[16:], None
    measured = closeness.measure(*sets, extractors=[plain, large], resamples=20)["rows"]["generated"]["features"]
    for name, factor in (("kid", 1), ("frechet", 49), ("frechet_ratio", 1)):
        assert measured["large"][name]["value"] == pytest.approx(factor * measured["plain"][name]["value"], rel=1e-6)


def test_all_measures_of_planted_images():
    real = (RNG.random((36, 1, 1, 3)) * 150 + RNG.random((36, 16, 16, 3)) * 30).astype(np.uint8)
    grades = np.arange(36) % 5
    grades[grades == 1] = 0
    plain = FeatureExtractor("corners", corners)
    bright = FeatureExtractor("brightness", lambda images: images.mean(axis=(1, 2)).astype(np.float32))
    asked_for = []

    def keep(network, images):
        for photographs in (real[:24], real[24:]):  # in their order, independent of the seed
            if np.array_equal(images, photographs):
                asked_for.append((network.name, len(images)))
        return network.extract(images)

    result = closeness.measure(
        real[:24],
        grades[:24],
        real[:24],
        grades[:24],
        real[24:],
        grades[24:],
        extractors=[plain, bright],
        resamples=20,
        photograph_features=keep,
    )
    json.dumps(result)
    # photographs only: features of generated images are not cached
    assert sorted(asked_for) == sorted((n.name, count) for n in (plain, bright) for count in (24, 12))
    assert result["networks"] == [plain.name, bright.name]
    rows = result["rows"]
    kid = {row: rows[row]["features"][plain.name]["kid"]["value"] for row in closeness.ROWS}
    assert kid["generated"] < kid["held_out_real"] < kid["noise"]
    assert kid["generated"] < kid["mean_image"]
    assert rows["mean_image"]["features"][plain.name]["recall"]["value"] == 0
    assert rows["mean_image"]["ms_ssim"]["value"] > 0.9
    missing = result["by_grade"]["MILD"]["generated"]["features"][bright.name]["kid"]["missing"]
    assert "0 generated and 0 training images of grade MILD" in missing
    for row in closeness.ROWS:
        entries = [rows[row][name] for name in closeness.MEASURES["pixels"]]
        for name in result["networks"]:
            of = rows[row]["features"][name]
            assert of.keys() == closeness.MEASURES["features"].keys()
            assert all(entry["features"] == name for entry in of.values())
            entries += of.values()
        for entry in entries:
            low, high = entry["interval"]
            assert low <= high and entry["features"]
    text = closeness.table(json.loads(json.dumps(result)))
    assert "Ratio 1" in text and f"features: {plain.name}" in text and "features: brightness" in text


def test_frechet_of_a_resample_is_that_of_the_repeated_images():
    rng = np.random.default_rng(3)
    for features in (6, 90):  # fewer than images, and more
        a, b = rng.normal(size=(40, features)), rng.normal(size=(30, features)) + 0.2
        u, v = intervals.resample_counts(rng, 40, 1)[0], intervals.resample_counts(rng, 30, 1)[0]
        repeated = distances.frechet(np.repeat(a, u, axis=0), np.repeat(b, v, axis=0))
        assert distances.frechet(a, b, u, v) == pytest.approx(repeated, rel=1e-9)
        assert distances.frechet(a, b, u) == pytest.approx(distances.frechet(np.repeat(a, u, axis=0), b), rel=1e-9)
