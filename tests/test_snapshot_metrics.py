"""Snapshot metrics of planted generators, the checkpoint they choose, and BatchNorm statistics of averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, changed, score, steps, train

from idrid_jax.data import cache, folds, splits
from idrid_jax.evaluation import distances, quality, snapshot_metrics
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.generation import sampling
from idrid_jax.models import build_networks
from idrid_jax.models.functional import RECOMPUTE_BATCHES, recompute_batch_stats
from idrid_jax.training.monitoring import sample_images


def colors(images):
    """Features without a network: the mean colors of 8x8 squares."""
    return images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(images), -1).astype(np.float32) / 255


@pytest.fixture
def extracted(monkeypatch):
    """How many images the stand-in for the installed network has seen, in order."""
    seen = []
    extractor = FeatureExtractor("colors", lambda images: seen.append(len(images)) or colors(images))
    monkeypatch.setattr(pretrained, "load", lambda name: {pretrained.IMAGENET: extractor}[name])
    return seen


def eyes(count, seed):
    """Round fields of random color with a bright disc at a random place: no two are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    images = np.zeros((count, 32, 32, 3))
    grades = np.arange(count) % 5
    for i in range(count):
        place = rng.uniform(-9, 9, 2)
        texture = np.kron(rng.uniform(-25, 25, (8, 8, 1)), np.ones((4, 4, 1)))
        images[i] = rng.uniform(60, 160, 3) + texture
        images[i][np.hypot(y - place[0], x - place[1]) < 4] += 60
        images[i][:6] += 15 * grades[i]
        images[i][np.hypot(y, x) > 15] = 0
    ids = tuple(map(str, range(count)))
    return cache.Split(images.clip(0, 255).astype(np.uint8), grades.astype(np.int32), np.zeros(count, np.int32), ids)


TRAINING, VALIDATION, NEW = eyes(60, 0), eyes(20, 1), eyes(40, 2)


def planted(name):
    rng = np.random.default_rng(3)
    noise = rng.integers(-6, 7, (40, 32, 32, 3))
    if name == "copies":
        return (TRAINING.images[:40, :, ::-1] + noise).clip(0, 255).astype(np.uint8)
    if name == "one":
        return (np.repeat(NEW.images[:1], 40, axis=0) + noise // 3).clip(0, 255).astype(np.uint8)
    return NEW.images if name == "new" else rng.integers(0, 256, (40, 32, 32, 3), np.uint8)


def test_planted_generators(extracted):
    """New images are nearest and most diverse; copies are rejected; one repeated image is too alike."""
    metrics = snapshot_metrics.SnapshotMetrics()
    names = ("new", "copies", "one", "noise")
    found = {name: metrics(planted(name), NEW.grades, TRAINING, VALIDATION) for name in names}
    kids = {name: one["kid_imagenet"] for name, one in found.items()}
    assert kids["new"] < min(kids["one"], kids["noise"])
    assert kids["new"] == distances.kid(colors(NEW.images), colors(VALIDATION.images))
    assert 0.4 < found["new"]["diversity"] < 2.5 and found["one"]["diversity"] < 0.1
    assert found["copies"]["copy_rate"] > 0.5 and found["copies"]["rejected"] == 1
    assert found["new"]["rejected"] == found["noise"]["rejected"] == 0
    assert found["one"]["ssim_excess"] > quality.COLLAPSE > abs(found["new"]["ssim_excess"])
    for one in found.values():
        assert one["ssim_gap"] == abs(one["ssim_excess"]) and all(np.isfinite(value) for value in one.values())
    assert extracted == [20, 40, 40, 40, 40]  # photographs are read once, at the first call


@pytest.mark.parametrize(
    "options, needed",
    [({}, True), ({"best": ""}, False), ({"best": "ssim_gap"}, False), ({"best": "", "stop_on_collapse": True}, True)],
)
def test_features_are_computed_only_if_they_are_needed(extracted, options, needed):
    found = snapshot_metrics.SnapshotMetrics(**options)(NEW.images[:8], None, TRAINING, VALIDATION)
    assert ("kid_imagenet" in found) == ("diversity" in found) == bool(extracted) == needed
    assert set(snapshot_metrics.SnapshotMetrics.names) == {"kid_imagenet", "copy_rate", "ssim_within", "ssim_gap"}


def test_with_few_photographs_metrics_are_absent():
    training, lines = eyes(12, 0), []
    metrics = snapshot_metrics.SnapshotMetrics(best="ssim_gap", log=lines.append)
    found = metrics(NEW.images[:8], training.grades, training, training.subset(np.arange(0)))
    assert found["rejected"] == 0
    assert len(lines) == 1 and lines[0].startswith("0 validation photographs")
    one = training.subset(np.arange(1))
    metrics = snapshot_metrics.SnapshotMetrics(best="")
    found = metrics(training.images[:5], None, one, training.subset(np.arange(0)))
    assert not {"copy_rate", "rejected", "ssim_excess"} & found.keys() and "ssim_within" in found


# -- what is chosen


def test_the_best_snapshot_that_is_not_rejected_is_kept_and_sampled(config, tmp_path):
    """Its generator has no moving average, so it uses the BatchNorm statistics of training."""
    scores = iter([(2.0, 0), (1.0, 1), (3.0, 0)])

    def measure(*_):
        value, rejected = next(scores)
        return {"score": value, "rejected": rejected}

    measure.names = score.names
    train(changed(config, checkpoint__best="score", checkpoint__keep_last=1), tmp_path, metrics=measure)
    assert steps(tmp_path) == [4, 12]  # the best and the newest; the lowest score, at step 8, was rejected
    sampler = sampling.load_sampler(tmp_path)
    assert sampler.step == 4 and sampling.load_sampler(tmp_path, 12).step == 12
    assert_same(sampler.stats, sampling.load_sampler(tmp_path, batch_statistics="running").stats)


def test_validation_photographs_are_not_trained_on(config, tmp_path):
    """By the splits that the metrics get."""
    config = changed(config, data__validation_folds=4)
    seen = []
    train(config, tmp_path, metrics=lambda fakes, grades, *splits: seen.append(splits) or {})
    training, validation = seen[0]
    manifest = splits.find_release(config)
    assert len(training.ids) + len(validation.ids) == 32 and 5 <= len(validation.ids) <= 8
    assert not set(training.ids) & set(validation.ids) and len(training.images) == len(training.ids)
    held = folds.validation_mask(manifest, 4)
    whole = splits.load_split(config, manifest, "train")
    np.testing.assert_array_equal(whole.images[held], validation.images)
    assert np.bincount(training.grades, minlength=5).min() > 0


# -- recomputed batch statistics


def test_recomputed_statistics_are_those_of_all_features(tiny, config):
    """Against the plain mean and variance of what BatchNorm sees, in float64 NumPy."""
    generator, _ = build_networks(config)
    params, running = generator.init(jax.random.key(1))
    grades = jnp.arange(5, dtype=jnp.int32)
    found = recompute_batch_stats(generator, params, running, 6, grades, 16)
    z = np.asarray(jax.random.normal(jax.random.key(0), (RECOMPUTE_BATCHES * 16, 6)), np.float64)
    mixture = np.asarray(jax.random.permutation(jax.random.key(1), jnp.resize(grades, RECOMPUTE_BATCHES * 16)))
    table = np.asarray(params["embed"]["embedding"], np.float64)
    seen = np.concatenate([z, table[mixture]], axis=-1) @ np.asarray(params["hidden"]["kernel"], np.float64)
    seen += np.asarray(params["hidden"]["bias"], np.float64)
    np.testing.assert_allclose(found["norm"]["mean"], seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["norm"]["var"], seen.var(0), rtol=1e-4)


def test_a_moving_average_has_recomputed_statistics(config, tmp_path):
    averaged = changed(config, ema_kimg=0.05)
    state = train(averaged, tmp_path)
    generator, _ = build_networks(averaged)
    z, grades = jax.random.normal(jax.random.key(5), (16, 6)), jnp.arange(16, dtype=jnp.int32) % 5
    images = np.asarray(sample_images(generator, state, z, grades, 8), int)
    stats = recompute_batch_stats(generator, state.ema, state.g.stats, 6, grades, 8)
    wanted = (np.asarray(generator.eval(state.ema, stats, z, grades)) + 1) * 127.5
    assert np.abs(images - wanted).max() < 0.51
    auto, recomputed, running = (
        sampling.load_sampler(tmp_path, batch_statistics=name).stats for name in ("auto", "recomputed", "running")
    )
    assert_same(auto, recomputed)
    assert (auto["norm"]["mean"] != running["norm"]["mean"]).any()
    assert_same(running, state.g.stats)
