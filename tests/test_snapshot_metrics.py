"""What a snapshot is measured by, the alarm that reads it, and BatchNorm's statistics of averaged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, score, steps, train

from idrid_jax.data import cache, folds, splits
from idrid_jax.evaluation import distances, grader, quality, snapshot_metrics
from idrid_jax.evaluation.features import trained_grader
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.generation import sampling
from idrid_jax.models import build_networks
from idrid_jax.models.functional import RECOMPUTE_BATCHES, recompute_batch_stats
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.monitoring import sample_images

BUDGET = grader.Budget(steps=60, batch_size=16, learning_rate=3e-3)


def eyes(count, seed):
    """Round fields of random colour with a bright disc at a random place: no two alike."""
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


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measures of planted generators, as a snapshot would have them."""
    training, validation, new = eyes(60, 0), eyes(20, 1), eyes(40, 2)
    with pytest.MonkeyPatch.context() as patch:
        defaults = trained_grader.train.__kwdefaults__
        patch.setattr(trained_grader.train, "__kwdefaults__", defaults | {"budget": BUDGET})
        measures = snapshot_metrics.SnapshotMetrics(tmp_path_factory.mktemp("graders"), best="kid_grader")
        rng = np.random.default_rng(3)
        noise = rng.integers(-6, 7, (40, 32, 32, 3))
        copies = (training.images[:40, :, ::-1] + noise).clip(0, 255).astype(np.uint8)
        sets = {
            "new": new.images,
            "copies": copies,
            "one": (np.repeat(new.images[:1], 40, axis=0) + noise // 3).clip(0, 255).astype(np.uint8),
            "noise": rng.integers(0, 256, (40, 32, 32, 3), np.uint8),
        }
        yield {name: measures(images, new.grades, training, validation) for name, images in sets.items()}


def test_new_images_are_nearest_and_most_diverse(measured):
    kid = {name: of["kid_grader"] for name, of in measured.items()}
    assert kid["new"] < min(kid["one"], kid["noise"])
    assert 0.4 < measured["new"]["diversity"] < 2.5 and measured["one"]["diversity"] < 0.1
    assert all(np.isfinite(value) for of in measured.values() for value in of.values())


def test_copies_are_vetoed_and_new_images_are_not(measured):
    assert measured["copies"]["copy_rate"] > 0.5 and measured["copies"]["rejected"] == 1
    assert measured["new"]["rejected"] == measured["noise"]["rejected"] == 0


def test_ssim_tells_one_image_from_many(measured):
    assert measured["one"]["ssim_excess"] > quality.COLLAPSE > abs(measured["new"]["ssim_excess"])
    for of in measured.values():
        assert of["ssim_gap"] == abs(of["ssim_excess"])


def test_without_validation_photographs_and_without_a_grader(tmp_path):
    """Nothing that lacks photographs passes for a number, and nothing is trained that is not asked for."""
    training = eyes(12, 0)
    lines = []
    measures = snapshot_metrics.SnapshotMetrics(tmp_path, best="ssim_gap", log=lines.append)
    found = measures(eyes(8, 1).images, training.grades, training, training.subset(np.arange(0)))
    assert not {"kid_grader", "kid_imagenet", "diversity"} & found.keys() and found["rejected"] == 0 and not any(tmp_path.iterdir())
    assert lines == ["0 validation photographs, fewer than 10: snapshots are compared with the training photographs"]
    one = training.subset(np.arange(1))
    found = snapshot_metrics.SnapshotMetrics(tmp_path, best="")(training.images[:5], None, training, one.subset(np.arange(0)))
    assert "ssim_excess" in found


def test_features_of_imagenet_only_where_they_choose(tmp_path, monkeypatch):
    seen = []
    network = FeatureExtractor("colour", lambda images: seen.append(len(images)) or images.mean((1, 2)).astype(np.float32) / 255)
    monkeypatch.setattr(snapshot_metrics.pretrained, "load", lambda name: {"efficientnet-lite0": network}[name])
    monkeypatch.setattr(snapshot_metrics.trained_grader, "train", lambda *args, **more: (network, None))
    training, validation, fakes = eyes(60, 0), eyes(20, 1), eyes(8, 2)
    measures = snapshot_metrics.SnapshotMetrics(tmp_path)
    found = [measures(fakes.images, fakes.grades, training, validation) for _ in range(2)]
    wanted = distances.kid(*(network.extract(some.images) for some in (fakes, validation)))
    assert found[0]["kid_imagenet"] == found[1]["kid_imagenet"] == wanted and "diversity" in found[0]
    assert "kid_imagenet" in measures.names  # or it could not be chosen by
    del seen[:]
    measure = lambda **asked: snapshot_metrics.SnapshotMetrics(tmp_path, **asked)(fakes.images, None, training, validation)
    assert not {"kid_imagenet", "diversity"} & measure(best="").keys()
    assert not seen
    assert "diversity" in measure(best="", stop_on_collapse=True)  # or a collapse would go unheard


def test_a_grader_is_trained_once_and_a_torn_one_again(tmp_path):
    images, grades = eyes(20, 0).images, eyes(20, 0).grades
    told = []
    budget = grader.Budget(steps=3, batch_size=4)
    first, params = trained_grader.train(images, grades, tmp_path, budget=budget, tell=told.append)
    again, _ = trained_grader.train(images, grades, tmp_path, budget=budget, tell=told.append)
    np.testing.assert_array_equal(first.extract(images), again.extract(images))
    assert first.name == again.name and first.extract(images[:3]).shape == (3, 64) and len(told) == 1
    other, _ = trained_grader.train(images[::-1], grades[::-1], tmp_path, budget=budget, tell=told.append)
    assert other.name != first.name and len(told) == 2
    (kept,) = [
        path for path in tmp_path.glob(f"*/{trained_grader.FILE}") if first.name.split("-v1-")[1][:8] in str(path)
    ]
    kept.write_bytes(kept.read_bytes()[:100])
    trained_grader.train(images, grades, tmp_path, budget=budget, tell=told.append)
    assert len(told) == 3
    read = grader.read(params, images)[0]
    asked = [row[grade] for row, grade in zip(read, grades)]
    np.testing.assert_array_equal(trained_grader.likelihood(params, images, grades), asked)


# -- what is chosen


def test_the_best_that_is_not_vetoed_is_chosen_and_sampled(config, tmp_path):
    scores = iter([(3.0, 0), (1.0, 1), (2.0, 0)])

    def measure(*_):
        value, veto = next(scores)
        return {"score": value, "rejected": veto}

    measure.names = score.names
    train(changed(config, checkpoint__best="score", checkpoint__keep_last=1), tmp_path, metrics=measure)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 12 and checkpoints.steps() == [12]
    assert sampling.load_sampler(tmp_path).step == 12

    scores = iter([(1.0, 0), (3.0, 0), (2.0, 0)])
    train(changed(config, checkpoint__best="score", checkpoint__keep_last=1), tmp_path / "b", metrics=measure)
    assert steps(tmp_path / "b") == [4, 12] and sampling.load_sampler(tmp_path / "b").step == 4
    assert sampling.load_sampler(tmp_path / "b", 12).step == 12


def test_validation_photographs_are_not_trained_on(config, tmp_path):
    """By what is handed to the measures, and by the batches' own order."""
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


def test_an_average_draws_with_its_own_statistics_and_the_rest_with_running_ones(config, tmp_path):
    averaged = changed(config, ema_kimg=0.05)
    state = train(averaged, tmp_path)
    generator, _ = build_networks(averaged)
    z, grades = jax.random.normal(jax.random.key(5), (16, 6)), jnp.arange(16, dtype=jnp.int32) % 5
    plain = np.asarray(sample_images(generator, state, z, grades, 8), int)
    stats = recompute_batch_stats(generator, state.ema, state.g.stats, 6, grades, 8)
    wanted = (np.asarray(generator.eval(state.ema, stats, z, grades)) + 1) * 127.5
    assert np.abs(plain - wanted).max() < 0.51
    labels = np.arange(5)
    by = {
        s: np.stack(list(sampling.load_sampler(tmp_path, batch_statistics=s).images(labels))) for s in ("auto", "recomputed", "running")
    }
    np.testing.assert_array_equal(by["auto"], by["recomputed"])
    assert (by["auto"] != by["running"]).any()
    train(config, tmp_path / "plain")
    by = {
        s: np.stack(list(sampling.load_sampler(tmp_path / "plain", batch_statistics=s).images(labels))) for s in ("auto", "running")
    }
    np.testing.assert_array_equal(by["auto"], by["running"])
