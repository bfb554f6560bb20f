"""Distances and neighbor measures against torch-fidelity on the same features, to the tolerance that it publishes for
itself (1e-6 of the value; its page "Numerical precision"); density and coverage, which it lacks, by their formulas."""

import numpy as np
import pytest
from peers import fidelity

from idrid_jax.evaluation import coverage, distances


@pytest.fixture(scope="module")
def theirs():
    """torch.from_numpy, and torch-fidelity's FID, KID and precision and recall."""
    torch, _, _ = fidelity.imported()
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    return torch.from_numpy, metric_fid, metric_kid, metric_prc


def features(n, m, d, shift):
    """Positive and unequal in scale, as pooled features are; float64, in which both sides then count."""
    rng = np.random.default_rng([n, m, d])
    scale = rng.uniform(0.1, 2, d)
    return np.abs(rng.normal(size=(n, d))) * scale, np.abs(rng.normal(size=(m, d)) + shift) * scale


SETS = [features(120, 100, 24, 0.3), features(60, 90, 256, 0.5), features(200, 200, 8, 0.0)]
each = pytest.mark.parametrize("generated, real", SETS, ids=["more", "fewer than channels", "alike"])


@pytest.mark.peer
@each
def test_frechet(theirs, generated, real):
    tensor, fid, _, _ = theirs
    statistics = [fid.fid_features_to_statistics(tensor(x)) for x in (generated, real)]
    want = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert distances.frechet(generated, real) == pytest.approx(want, rel=1e-6)


@pytest.mark.peer
@each
def test_kid(theirs, generated, real):
    tensor, _, kid, _ = theirs
    count = min(len(generated), len(real))
    a, b = generated[:count], real[:count]
    options = {"kid_subsets": 1, "kid_subset_size": count, "verbose": False}
    want = kid.kid_features_to_metric(tensor(a), tensor(b), **options)[kid.KEY_METRIC_KID_MEAN]
    assert distances.kid(a, b) == pytest.approx(want, rel=1e-6)


@pytest.mark.peer
def test_kid_over_subsets(theirs):
    """The subsets are sampled in another way, so only the means of many agree."""
    tensor, _, kid, _ = theirs
    generated, real = SETS[0]
    options = {"kid_subsets": 400, "kid_subset_size": 50, "verbose": False}
    want = kid.kid_features_to_metric(tensor(generated), tensor(real), **options)
    error = want[kid.KEY_METRIC_KID_STD] * (2 / 400) ** 0.5
    assert abs(distances.kid(generated, real, subset=50, subsets=400) - want[kid.KEY_METRIC_KID_MEAN]) < 4 * error


@pytest.mark.peer
@each
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(theirs, generated, real, k):
    tensor, _, _, prc = theirs
    want = prc.prc_features_to_metric(tensor(generated), tensor(real), prc_neighborhood=k, verbose=False)
    ours = coverage.prdc(*(coverage.distances(*pair) for pair in pairs(generated, real)), k=k)
    for name in ("precision", "recall"):
        assert ours[name].mean() == pytest.approx(want[name], rel=1e-6)
    assert 0 < want["precision"] and want["recall"] < 1  # or it would say nothing


def pairs(fake, real):
    return (fake, fake), (real, real), (fake, real)


@each
@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage(generated, real, k):
    """Naeem et al. 2020, equations 3 and 4, by the book."""
    radius = [np.sort([np.linalg.norm(x - y) for y in real])[k] for x in real]  # the 0th is x itself
    inside = np.array([[np.linalg.norm(y - x) <= r for x, r in zip(real, radius)] for y in generated])
    ours = coverage.prdc(*(coverage.distances(*pair) for pair in pairs(generated, real)), k=k)
    assert ours["density"].mean() == pytest.approx(inside.sum() / (k * len(generated)))
    assert ours["coverage"].mean() == pytest.approx(np.mean([inside[:, i].any() for i in range(len(real))]))
