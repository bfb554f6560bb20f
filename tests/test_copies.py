"""Copies of training photographs: planted ones are caught, new images are not; a discriminator that knows its own."""

import numpy as np
import pytest
import scipy.stats
from scipy import ndimage

from idrid_jax.evaluation import copies, membership

IDS = tuple(f"train/IDRiD_{n:03d}" for n in range(1, 121))


def eyes(count, seed, size=48):
    """Structure of several scales within a round field on black, unlike from one to the next."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    field = np.hypot(row, column) < 0.48 * size
    images = np.zeros((count, size, size, 3), np.uint8)
    for i in range(count):
        fields = [ndimage.gaussian_filter(rng.standard_normal((size, size)), s) for s in (1.5, 3, 6)]
        x = sum(f / f.std() for f in fields)
        grey = np.clip(110 + 15 * x, 40, 255) * field
        images[i] = np.stack([grey, 0.6 * grey, 0.3 * grey], -1)
    return images


def noisy(images, seed=0):
    """Mirrored every second time, up to 15 % brighter or darker, under noise of 8 grey levels."""
    rng = np.random.default_rng(seed)
    x = images.astype(float)
    x[::2] = x[::2, :, ::-1]
    x = x * rng.uniform(0.85, 1.15, (len(x), 1, 1, 1)) + rng.normal(0, 8, x.shape)
    return np.clip(x, 0, 255).astype(np.uint8)


TRAINING, HELD_OUT, NEW = eyes(120, 0), eyes(60, 1), eyes(80, 2)


def test_new_images_are_no_copies():
    result = copies.measure(NEW, TRAINING, HELD_OUT, IDS)
    assert result["verdict"].startswith("no sign of copying") and result["nearer"] <= 0.05
    assert abs(result["c_t"]) < 3 and abs(result["generated"]["authentic"] - result["held_out"]["authentic"]) < 0.25


def test_a_copycat_is_caught_and_its_pairs_are_named():
    which = np.random.default_rng(3).permutation(120)[:80]
    result = copies.measure(noisy(TRAINING[which]), TRAINING, HELD_OUT, IDS)
    assert result["verdict"].startswith("copies: ") and result["nearer"] > 0.95 and result["c_t"] < -8
    assert result["generated"]["authentic"] < 0.05
    assert [pair["similarity"] for pair in result["pairs"]] == sorted(
        (p["similarity"] for p in result["pairs"]), reverse=True
    )
    for pair in result["pairs"]:
        assert pair["training"] == IDS[which[pair["generated"]]] == IDS[pair["index"]]
    shown = copies.table(result)
    assert result["verdict"] in shown and result["pairs"][0]["training"] in shown


def test_a_tenth_of_copies_is_enough():
    mixed = np.concatenate([noisy(TRAINING[:8]), NEW[8:]])
    result = copies.measure(mixed, TRAINING, HELD_OUT, IDS)
    assert result["verdict"].startswith("copies: ") and result["nearer"] == pytest.approx(0.1, abs=0.04)
    assert result["c_t"] > -5  # which the statistic over all images hardly shows
    assert {pair["generated"] for pair in result["pairs"][:8]} == set(range(8))


def test_similarity_is_a_correlation_and_knows_mirrors():
    looks = copies.look(TRAINING[:4])
    assert looks.shape == (4, 48, 48)
    np.testing.assert_allclose((looks**2).sum((1, 2)), 1, rtol=1e-5)
    mirrored = copies.similarity(looks[:, :, ::-1], looks)
    assert np.allclose(np.diag(mirrored), 1, atol=1e-5) and mirrored[~np.eye(4, dtype=bool)].max() < 0.9
    of = lambda look: np.corrcoef(look.ravel(), looks[1].ravel())[0, 1]
    upright, turned = of(looks[0]), of(looks[0, :, ::-1])
    assert copies.similarity(looks[:1], looks[1:2])[0, 0] == pytest.approx(max(upright, turned), abs=1e-3)


def test_sizes_channels_and_images_of_nothing():
    for size, channels in ((28, 1), (256, 3), (130, 3)):
        assert copies.look(np.full((2, size, size, channels), 90, np.uint8)).any() == False  # noqa: E712
    black = copies.look(np.zeros((1, 32, 32, 1), np.uint8))
    assert black.shape == (1, 32, 32) and not black.any()
    assert copies.look(eyes(1, 5, size=256)).shape == (1, 64, 64)


def test_c_t_is_the_z_of_mann_whitney():
    rng = np.random.default_rng(0)
    generated, held_out = rng.random(50).round(2), rng.random(40).round(2) + 0.1
    u = scipy.stats.mannwhitneyu(-generated, -held_out).statistic  # of distances
    z = (u - 50 * 40 / 2) / np.sqrt(50 * 40 * 91 / 12)
    assert copies.data_copying(generated, held_out) == pytest.approx(z)
    assert copies.data_copying(held_out, held_out) == 0


def test_authenticity_by_its_definition():
    rng = np.random.default_rng(0)
    points, new = rng.standard_normal((30, 2)), rng.standard_normal((20, 2))
    distance = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1)
    found = copies.authenticity(-distance(new, points), -distance(points, points))
    for x, authentic in zip(new, found):
        to = np.linalg.norm(points - x, axis=1)
        nearest = points[to.argmin()]
        others = np.sort(np.linalg.norm(points - nearest, axis=1))
        assert authentic == (to.min() > others[1])


@pytest.mark.parametrize("few", ["generated", "training", "held-out"])
def test_too_few_images_are_told(few):
    sets = {"generated": NEW, "training": TRAINING, "held-out": HELD_OUT}
    sets[few] = sets[few][:9]
    result = copies.measure(*sets.values(), IDS)
    assert result == {"missing": f"9 {few} images; it takes at least 10"} and "not judged" in copies.table(result)


# -- membership


def test_auc_is_mann_whitney_s():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    u = scipy.stats.mannwhitneyu(members, others).statistic
    assert membership.auc(members, others) == pytest.approx(u / 2400)
    assert membership.auc(others + 9, others) == 1 and membership.auc(others, others) == 0.5


def test_a_discriminator_that_knows_its_photographs_is_told():
    rng = np.random.default_rng(0)
    knows = membership.measure(rng.normal(1, 1, 200), rng.normal(0, 1, 100))
    assert knows["verdict"].startswith("the discriminator gives away") and 0.5 < knows["interval"][0] < knows["auc"]
    # not more than untrained networks show of two splits that differ by themselves
    splits = rng.normal(1, 1, 200), rng.normal(0, 1, 100)
    same = membership.measure(*splits, [splits])
    assert same["verdict"].startswith("no sign") and same["untrained"] == same["auc"] > 0.5
    verdicts = [
        membership.measure(*np.split(np.random.default_rng(i).normal(size=300), [200]), resamples=200)["interval"][0]
        > 0.5
        for i in range(60)
    ]
    assert sum(verdicts) <= 6  # 2.5 % of them by chance
    few = membership.measure(rng.normal(size=200), rng.normal(size=9))
    assert few == {"missing": "9 held-out photographs; it takes at least 10"} and "not judged" in membership.line(few)
