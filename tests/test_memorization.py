"""Planted copies of training photographs are found, new images are not; membership inference on planted logits."""

import numpy as np
import pytest
import scipy.stats
from scipy import ndimage
from scipy.spatial.distance import cdist

from idrid_jax.evaluation import membership, memorization

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


def changed(images, seed=0, *, noise=0.0, bright=0.0, mirror=False, upside_down=False, turn=0.0, move=0.0):
    """With noise (grey levels), brighter or darker by up to a share, mirrored, upside down, turned by degrees, moved by
    pixels."""
    rng = np.random.default_rng(seed)
    x = images[:, :, ::-1] if mirror else images
    x = x[:, ::-1] if upside_down else x
    x = x.astype(float)
    if turn or move:
        for i in range(len(x)):
            x[i] = ndimage.rotate(x[i], turn * rng.choice([-1, 1]), reshape=False, order=1)
            x[i] = ndimage.shift(x[i], (move, 0, 0), order=1)
    x = x * rng.uniform(1 - bright, 1 + bright, (len(x), 1, 1, 1)) + rng.normal(0, noise, x.shape)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def grey28(images):
    """As the thesis has them: 28 x 28 grey whole frames, black above and below."""
    small = ndimage.zoom(images.mean(-1, keepdims=True), (1, 20 / 48, 28 / 48, 1), order=1)
    return np.pad(small, ((0, 0), (4, 4), (0, 0), (0, 0))).round().astype(np.uint8)


def rgb64(images):
    return ndimage.zoom(images, (1, 64 / 48, 64 / 48, 1), order=1)


FORMS = {"48": lambda images: images, "28 grey": grey28, "64": rgb64}


@pytest.mark.parametrize("form", FORMS)
def test_new_images_are_not_copies(form):
    sets = [FORMS[form](images) for images in (NEW, TRAINING, HELD_OUT)]
    result = memorization.measure(*sets, IDS)
    assert result["verdict"].startswith("no sign of copying: 0 of 80") and result["copy_rate"] == 0
    assert abs(result["c_t"]) < 3 and abs(result["generated"]["authentic"] - result["held_out"]["authentic"]) < 0.25


def test_half_of_training_is_not_a_copy_of_the_other():
    for seed in range(3):
        one, other = np.split(np.random.default_rng(seed).permutation(120), 2)
        assert memorization.measure(TRAINING[one], TRAINING[other], HELD_OUT, IDS[:60])["generated"]["num_copies"] == 0


def test_copies_are_found_and_paired_with_their_photographs():
    which = np.random.default_rng(3).permutation(120)[:80]
    result = memorization.measure(noisy(TRAINING[which]), TRAINING, HELD_OUT, IDS)
    assert result["verdict"].startswith("copies: 80 of 80") and result["copy_rate"] == 1 and result["c_t"] < -8
    assert result["generated"]["authentic"] < 0.05
    assert [pair["similarity"] for pair in result["pairs"]] == sorted(
        (p["similarity"] for p in result["pairs"]), reverse=True
    )
    for pair in result["pairs"]:
        assert pair["training"] == IDS[which[pair["generated"]]] == IDS[pair["index"]]
    shown = memorization.table(result)
    assert result["verdict"] in shown and result["pairs"][0]["training"] in shown


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.1, 0.025])
def test_a_small_share_of_copies_is_found(form, share):
    few = round(80 * share)
    mixed = [FORMS[form](images) for images in (np.concatenate([noisy(TRAINING[:few]), NEW[few:]]), TRAINING, HELD_OUT)]
    result = memorization.measure(*mixed, IDS)
    assert result["verdict"].startswith(f"copies: {few} of 80") and result["copy_rate"] == share > result["threshold"]
    assert result["c_t"] > -5  # which the statistic over all images hardly shows
    assert {pair["generated"] for pair in result["pairs"][:few]} == set(range(few))


@pytest.mark.parametrize(
    "change",
    [
        {"noise": 5},
        {"noise": 10},
        {"bright": 0.15},
        {"mirror": True},
        {"upside_down": True},
        {"mirror": True, "upside_down": True, "noise": 8},
        {"turn": 2},
        {"turn": 4},
        {"move": 0.5},
        {"noise": 8, "bright": 0.15, "mirror": True, "turn": 2},
    ],
    ids=str,
)
def test_a_changed_copy_is_a_copy(change):
    photographs = memorization.TrainingPhotographs(TRAINING)
    planted = changed(TRAINING, **change)
    assert (photographs.similarity(planted) >= memorization.COPY).mean() > 0.9
    assert (photographs.distances(planted).argmin(1) == np.arange(120)).mean() > 0.99


def test_mean_images_noise_and_flat_images_are_not_copies():
    rng = np.random.default_rng(0)
    mean = changed(np.repeat(TRAINING.mean(0, keepdims=True), 50, axis=0), noise=2)
    for images in (mean, rng.integers(0, 256, (50, 48, 48, 3), np.uint8), np.full((50, 48, 48, 3), 90, np.uint8)):
        assert memorization.measure(images, TRAINING, HELD_OUT, IDS)["generated"]["num_copies"] == 0


def test_one_copy_may_be_chance_two_are_not():
    for few, word in ((1, "no sign of copying: 1 of 40"), (2, "copies: 2 of 40")):
        mixed = np.concatenate([noisy(TRAINING[:few]), NEW[: 40 - few]])
        assert memorization.measure(mixed, TRAINING, HELD_OUT, IDS)["verdict"].startswith(word)


def test_held_out_photographs_that_are_copies_raise_the_threshold():
    mixed = np.concatenate([noisy(TRAINING[:4]), NEW[4:]])
    leaked = np.concatenate([HELD_OUT[4:], TRAINING[50:54]])
    result = memorization.measure(mixed, TRAINING, leaked, IDS)
    assert result["threshold"] == pytest.approx(4 / 60 + memorization.SHARE) and result["verdict"].startswith("no sign")
    assert "of 60 held-out ones 4 are" in result["verdict"]


def test_a_duplicated_photograph_does_not_hide_its_copies():
    twice = np.concatenate([TRAINING, changed(TRAINING[:5], noise=1)])
    mixed = np.concatenate([noisy(TRAINING[:5]), NEW[5:]])
    assert memorization.measure(mixed, twice, HELD_OUT, IDS + IDS[:5])["generated"]["num_copies"] == 5


def test_similarity_by_its_definition():
    """Against loops: averaged to about 32 pixels, blurred, within the retina, mirrored, upside down, both or neither,
    relative to the next."""
    inside = memorization.retina_mask(TRAINING)
    assert inside.shape == (24, 24) and 0.2 < inside.mean() < 0.7
    assert (inside == inside[:, ::-1]).all() and (inside == inside[::-1]).all()

    def vector(image):
        x = image.astype(float).reshape(24, 2, 24, 2, 3).mean((1, 3))
        x = np.stack([ndimage.gaussian_filter(x[..., c], 2, mode="nearest") for c in range(3)], -1)
        x = x[inside].ravel() - x[inside].mean()
        return x / np.sqrt((x * x).sum())

    some, few = NEW[:5], TRAINING[:9]
    apart = lambda x, y: min(np.linalg.norm(vector(z) - vector(y)) for z in (x, x[:, ::-1], x[::-1], x[::-1, ::-1]))
    want = np.array([[apart(x, y) for y in few] for x in some])
    structure = memorization.coarse_structure(few, inside)
    found = memorization.structure_distances(memorization.coarse_structure(some, inside), structure)
    np.testing.assert_allclose(found, want, atol=1e-4)
    two = np.sort(want, axis=1)
    among = memorization.structure_distances(structure, structure)
    np.testing.assert_allclose(memorization.similarity(found, among), 1 - two[:, 0] / two[:, 1], atol=1e-3)


def test_sizes_channels_and_flat_images():
    for size, channels in ((28, 1), (256, 3), (130, 3)):
        flat = np.full((12, size, size, channels), 90, np.uint8)
        photographs = memorization.TrainingPhotographs(flat)
        assert not photographs.structure.any() and not photographs.similarity(flat[:2]).any()
    assert memorization.retina_mask(np.zeros((3, 32, 32, 1), np.uint8)).all()  # without a retina, everywhere
    assert memorization.retina_mask(eyes(3, 5, size=256)).shape == (32, 32)


def test_c_t_is_the_z_of_mann_whitney():
    rng = np.random.default_rng(0)
    generated, held_out = rng.random(50).round(2), rng.random(40).round(2) - 0.1
    u = scipy.stats.mannwhitneyu(generated, held_out).statistic  # of distances
    z = (u - 50 * 40 / 2) / np.sqrt(50 * 40 * 91 / 12)
    assert memorization.data_copying(generated, held_out) == pytest.approx(z) and z > 0
    assert memorization.data_copying(held_out, held_out) == 0


def test_means_of_two_photographs_are_nearer_than_new_images():
    """They are copies of none, but C_T reports that they are not new."""
    mixed = ((TRAINING[:60].astype(float) + TRAINING[60:]) / 2).astype(np.uint8)
    result = memorization.measure(mixed, TRAINING, HELD_OUT, IDS)
    assert result["generated"]["num_copies"] == 0 and result["c_t"] < memorization.C_T_LIMIT
    assert result["verdict"].startswith("nearer to the training photographs") and "below -3" in result["verdict"]


def test_distances_by_features_too():
    """Copies lie nearer by features than held-out photographs, new images do not."""
    colours = lambda images: images.reshape(len(images), -1, 3)[:, ::50].reshape(len(images), -1).astype(float)
    sets = {"new": NEW, "copied": noisy(TRAINING[:80])}
    found = {}
    for name, images in sets.items():
        features = {"pixels": (colours(images), colours(TRAINING)[None], colours(HELD_OUT))}
        result = memorization.measure(images, TRAINING, HELD_OUT, IDS, features)
        assert list(result["distances"]) == [memorization.STRUCTURE, "pixels"]
        assert result["distances"][memorization.STRUCTURE]["c_t"] == result["c_t"]
        assert result["distances"][memorization.STRUCTURE]["generated"]["authentic"] == result["generated"]["authentic"]
        assert "pixels" in memorization.table(result) and "C_T below -3" in memorization.table(result)
        found[name] = result["distances"]["pixels"]
    assert abs(found["new"]["c_t"]) < 3
    apart = lambda a, b: np.linalg.norm(colours(a)[:, None] - colours(b), axis=-1)
    own = apart(TRAINING, TRAINING) + np.diag(np.full(120, np.inf))
    assert found["new"]["held_out"]["nearest"]["0.5"] == pytest.approx(
        np.median(apart(HELD_OUT, TRAINING).min(1)) / np.median(own.min(1))
    )
    exact = memorization.distance_summary(
        {"generated": apart(TRAINING[:50], TRAINING), "held_out": apart(HELD_OUT, TRAINING)}, own
    )
    assert exact["c_t"] < -8 and exact["generated"] == {"nearest": dict.fromkeys(map(str, memorization.QUANTILES), 0.0),
                                                        "authentic": 0.0}  # fmt: skip


def test_softened_features_find_noisy_and_mirrored_copies():
    """By raw pixel differences noisy mirrored copies look new; softened, and mirrored too, they do not."""
    fine = lambda images: np.diff(images.astype(float), axis=2).reshape(len(images), -1)
    copied = changed(TRAINING[:60], noise=8, mirror=True)
    distances = {"generated": cdist(fine(copied), fine(TRAINING)), "held_out": cdist(fine(HELD_OUT), fine(TRAINING))}
    bare = memorization.distance_summary(distances, cdist(fine(TRAINING), fine(TRAINING)))
    assert bare["c_t"] > 3
    soft = lambda images: fine(memorization.softened(images))
    sides = lambda images: np.stack([soft(images), soft(images[:, :, ::-1])])
    features = {"fine": (soft(copied), sides(TRAINING), soft(HELD_OUT))}
    found = memorization.measure(copied, TRAINING, HELD_OUT, IDS, features)["distances"]["fine"]
    assert found["c_t"] < -8 and found["generated"]["authentic"] < 0.05 < found["held_out"]["authentic"]
    features["fine"] = soft(NEW), *features["fine"][1:]
    assert abs(memorization.measure(NEW, TRAINING, HELD_OUT, IDS, features)["distances"]["fine"]["c_t"]) < 3


def test_softened_is_a_gaussian_blur():
    image = np.zeros((2, 64, 64, 3), np.uint8)
    image[1, 32, 32] = 255
    soft = memorization.softened(image)
    assert soft.dtype == np.uint8 and not soft[0].any()
    gaussian = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    gaussian /= gaussian.sum()
    wanted = np.rint(255 * np.outer(gaussian, gaussian))
    assert np.abs(soft[1, 24:41, 24:41, 0] - wanted).max() <= 1


def test_authenticity_by_its_definition():
    rng = np.random.default_rng(0)
    points, new = rng.standard_normal((30, 2)), rng.standard_normal((20, 2))
    distance = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1)
    found = memorization.authenticity(distance(new, points), distance(points, points))
    for x, authentic in zip(new, found):
        to = np.linalg.norm(points - x, axis=1)
        nearest = points[to.argmin()]
        others = np.sort(np.linalg.norm(points - nearest, axis=1))
        assert authentic == (to.min() > others[1])


@pytest.mark.parametrize("few", ["generated", "training", "held-out"])
def test_too_few_images_are_named(few):
    sets = {"generated": NEW, "training": TRAINING, "held-out": HELD_OUT}
    sets[few] = sets[few][:9]
    result = memorization.measure(*sets.values(), IDS)
    assert result["missing"].startswith(f"9 {few} images") and "not judged" in memorization.table(result)


# -- membership


def test_auc_is_mann_whitney():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    u = scipy.stats.mannwhitneyu(members, others).statistic
    assert membership.auc(members, others) == pytest.approx(u / 2400)
    assert membership.auc(others + 9, others) == 1 and membership.auc(others, others) == 0.5


def test_a_discriminator_that_memorized_its_photographs_is_reported():
    rng = np.random.default_rng(0)
    knows = membership.measure(rng.normal(1, 1, 200), rng.normal(0, 1, 100))
    assert knows["verdict"].startswith("the discriminator reveals") and 0.5 < knows["interval"][0] < knows["auc"]
    # not more than untrained networks show of two splits that differ by themselves
    splits = rng.normal(1, 1, 200), rng.normal(0, 1, 100)
    same = membership.measure(*splits, [splits])
    assert same["verdict"].startswith("no sign") and same["untrained_auc"] == same["auc"] > 0.5
    verdicts = [
        membership.measure(*np.split(np.random.default_rng(i).normal(size=300), [200]), resamples=200)["interval"][0]
        > 0.5
        for i in range(60)
    ]
    assert sum(verdicts) <= 6  # 2.5 % of them by chance
    few = membership.measure(rng.normal(size=200), rng.normal(size=9))
    assert few["missing"].startswith("9 held-out photographs") and "not judged" in membership.table(few)
