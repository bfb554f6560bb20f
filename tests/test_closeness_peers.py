"""Our distances and neighbour measures against torch-fidelity's, on the same features, to the tolerances that it
publishes for itself (1e-6 of the value; its page "Numerical precision"); density and coverage, which it lacks, against
their formulas."""

import numpy as np
import pytest
from peers import fidelity

from idrid_jax.evaluation import coverage, distances

torch, _, _ = fidelity.imported()
from torch_fidelity import metric_fid, metric_kid, metric_prc  # noqa: E402


def features(n, m, d, shift):
    """Positive and unequal in scale, as pooled features are; float64, in which both sides then count."""
    rng = np.random.default_rng([n, m, d])
    scale = rng.uniform(0.1, 2, d)
    return np.abs(rng.normal(size=(n, d))) * scale, np.abs(rng.normal(size=(m, d)) + shift) * scale


SETS = [features(120, 100, 24, 0.3), features(60, 90, 256, 0.5), features(200, 200, 8, 0.0)]
each = pytest.mark.parametrize("generated, real", SETS, ids=["more", "fewer than channels", "alike"])


@each
def test_frechet(generated, real):
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (generated, real)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert distances.frechet(generated, real) == pytest.approx(theirs, rel=1e-6)


@each
def test_kid(generated, real):
    count = min(len(generated), len(real))
    a, b = generated[:count], real[:count]
    theirs = metric_kid.kid_features_to_metric(
        *map(torch.from_numpy, (a, b)), kid_subsets=1, kid_subset_size=count, verbose=False
    )[metric_kid.KEY_METRIC_KID_MEAN]
    assert distances.kid(a, b) == pytest.approx(theirs, rel=1e-6)


def test_kid_over_subsets():
    """The subsets are drawn anew, so means of many agree, and no better."""
    generated, real = SETS[0]
    options = {"kid_subsets": 400, "kid_subset_size": 50, "verbose": False}
    theirs = metric_kid.kid_features_to_metric(*map(torch.from_numpy, (generated, real)), **options)
    error = theirs[metric_kid.KEY_METRIC_KID_STD] / 400**0.5
    ours = distances.kid(generated, real, subset=50, subsets=400)
    assert abs(ours - theirs[metric_kid.KEY_METRIC_KID_MEAN]) < 5 * error


@each
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(generated, real, k):
    theirs = metric_prc.prc_features_to_metric(
        *map(torch.from_numpy, (generated, real)), prc_neighborhood=k, verbose=False
    )
    ours = coverage.prdc(*(coverage.distances(*pair) for pair in pairs(generated, real)), k=k)
    assert ours["precision"].mean() == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours["recall"].mean() == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < theirs["precision"] and theirs["recall"] < 1  # or it would say nothing


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
