"""Phantom photographs and releases: reproducible, realistic in geometry, and learnable by grade."""

import hashlib
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from idrid_jax.data.phantom import ASPECT, CENTER, DIAMETER, make_photograph, make_release
from idrid_jax.data.phantom_eye import DISC_DIAMETER
from idrid_jax.data.release import read_mask, read_release
from idrid_jax.errors import UserError

HEIGHT, WIDTH = 178, 268
SMALL = {"train": (3, 1, 3, 2, 2), "test": (1, 1, 1, 1, 1), "segmentation": (5, 2), "height": 96}


def draw(seed, grade, height=HEIGHT, width=WIDTH):
    return make_photograph(np.random.default_rng(seed), grade, height, width)


def decode(source):
    return np.asarray(Image.open(io.BytesIO(source.read())))


def tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def photographs():
    return [draw([5, i], i % 5) for i in range(40)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return read_release(make_release(tmp_path_factory.mktemp("phantom") / "release", seed=3, **SMALL))


def test_a_photograph_is_a_function_of_the_random_state():
    first, again, other = draw(1, 3), draw(1, 3), draw(2, 3)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.masks.keys() == again.masks.keys()
    assert (first.image != other.image).mean() > 0.3


def test_two_sizes_show_the_same_photograph():
    large, small = draw(4, 3, 356, 536), draw(4, 3)
    shrunk = np.asarray(Image.fromarray(large.image).reduce(2), float)
    assert np.abs(shrunk - small.image).mean() < 4
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.99
    assert large.edema == small.edema
    np.testing.assert_allclose((np.array(large.disc) + 0.5) / 2, np.array(small.disc) + 0.5)
    for name, mask in small.masks.items():
        assert large.masks[name].mean() == pytest.approx(mask.mean(), rel=0.25), name


def test_the_field_of_view_is_off_center_and_cut_at_top_and_bottom():
    image = draw(6, 0, 356, 536).image
    columns = np.flatnonzero((image.max(2) > 25).mean(0) > 0.05)
    np.testing.assert_allclose(columns[[0, -1]] / 536, [274 / 4288, 3687 / 4288], atol=0.01)
    assert (image.max(2) > 25)[[0, -1]].mean() > 0.3  # touches the upper and the lower edge
    assert image[:, round(0.9 * 536) :].max() < 20  # the black bar on the right


def test_masks_lie_in_the_field_of_view(photographs):
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    radius = np.hypot(x - CENTER * WIDTH, y - HEIGHT / 2) / (DIAMETER * HEIGHT)
    for phantom in photographs:
        for name, mask in phantom.masks.items():
            assert mask.dtype == bool and mask.shape == (HEIGHT, WIDTH) and mask.any(), name
            assert radius[mask].max() < 0.51, name


def test_an_absent_lesion_has_no_mask(photographs):
    have = [{name for i in range(grade, 40, 5) for name in photographs[i].masks} for grade in range(5)]
    assert have[0] == {"OD"} and have[1] == {"OD", "MA"}
    assert have[3] == have[4] == {"OD", "MA", "HE", "EX", "SE"}


def test_lesions_increase_with_the_grade(photographs):
    def area(phantom):
        return sum(mask.sum() for name, mask in phantom.masks.items() if name != "OD")

    means = [np.mean([area(p) for p in photographs[grade::5]]) for grade in range(5)]
    assert means[0] == 0 and means[1] > 0 and means[2] > 2 * means[1] and means[3] > 2 * means[2]
    haemorrhage = [np.mean([p.masks["HE"].sum() for p in photographs[grade::5]]) for grade in (2, 3, 4)]
    assert min(haemorrhage[1:]) > 2 * haemorrhage[0]


def test_another_grade_shows_the_same_eye():
    healthy, ill = draw(7, 0), draw(7, 2)
    assert healthy.disc == ill.disc and healthy.fovea == ill.fovea
    np.testing.assert_array_equal(healthy.masks["OD"], ill.masks["OD"])
    lesions = np.any([mask for name, mask in ill.masks.items() if name != "OD"], 0)
    change = np.abs(healthy.image.astype(float) - ill.image).max(2)
    assert change[lesions].mean() > 15 and np.median(change[~lesions]) <= 1


def test_the_disc_is_bright_and_the_fovea_dark_at_the_right_distance(photographs):
    for phantom in photographs[0::5]:
        y, x = np.nonzero(phantom.masks["OD"])
        np.testing.assert_allclose([x.mean(), y.mean()], phantom.disc, atol=0.5)
        apart = np.subtract(phantom.disc, phantom.fovea) / (DIAMETER * HEIGHT)
        assert 2.2 < np.hypot(*apart) / DISC_DIAMETER < 2.8  # about 2.5 disc diameters
        green = phantom.image[..., 1].astype(float)
        x, y = np.rint(phantom.fovea).astype(int)
        fovea = green[y - 3 : y + 4, x - 3 : x + 4].mean()
        assert fovea < np.median(green[green > 20]) < np.median(green[phantom.masks["OD"]])


def test_edema_risk_follows_from_the_exudates():
    seen = set()
    for i in range(60):
        phantom = draw([8, i], 2 + i % 3)
        seen.add(phantom.edema)
        assert ("EX" in phantom.masks) == (phantom.edema > 0)
        if phantom.edema:
            y, x = np.nonzero(phantom.masks["EX"])
            nearest = np.hypot(x - phantom.fovea[0], y - phantom.fovea[1]).min() / (DIAMETER * HEIGHT)
            assert (nearest <= DISC_DIAMETER) == (phantom.edema == 2)
    assert seen == {0, 1, 2}


def test_release_round_trip(release):
    for k, split in enumerate(("train", "test")):
        counts = np.bincount([r.grade for r in release.grading if r.split == split], minlength=5)
        assert tuple(counts) == SMALL[split]
        assert sum(r.split == split for r in release.segmentation) == SMALL["segmentation"][k]
    assert {(r.split, r.id) for r in release.localization} == {(r.split, r.id) for r in release.grading}
    assert all(r.edema == 0 for r in release.grading if r.grade < 2)
    assert "not photographs of patients" in (release.root / "README.txt").read_text().lower()


def test_parts_b_and_c_have_the_same_files_and_part_a_others(release):
    b = {(r.split, r.id): r.image.read() for r in release.grading}
    assert b == {(r.split, r.id): r.image.read() for r in release.localization}
    everything = [*b.values(), *(r.image.read() for r in release.segmentation)]
    assert len(set(everything)) == len(everything)


def test_photographs_are_baseline_jpeg_with_subsampled_color(release):
    image = Image.open(io.BytesIO(release.grading[0].image.read()))
    assert image.format == "JPEG" and image.mode == "RGB" and image.size == (round(96 * ASPECT), 96)
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)] and "progressive" not in image.info


def test_masks_of_the_release_fit_its_photographs(release):
    for record in release.segmentation:
        image = decode(record.image)
        assert {"MA", "OD"} <= record.masks.keys()
        for source in record.masks.values():
            mask = read_mask(source, image.shape[:2])
            assert mask.shape == image.shape[:2] and mask.any()


def test_ids_do_not_reveal_the_grade(tmp_path):
    release = read_release(make_release(tmp_path / "r", train=(4,) * 5, test=(0,) * 5, height=64))
    grades = [record.grade for record in release.grading]
    assert grades != sorted(grades) and abs(np.corrcoef(np.arange(20), grades)[0, 1]) < 0.6


def test_release_is_a_function_of_its_options(tmp_path):
    counts = {"train": (1, 0, 1, 0, 1), "test": (0, 0, 0, 1, 0), "segmentation": (1, 0), "height": 64}
    first = tree(make_release(tmp_path / "a", seed=1, **counts))
    assert first == tree(make_release(tmp_path / "b", seed=1, **counts))
    other = tree(make_release(tmp_path / "c", seed=2, **counts))
    assert not set(first.values()) & {digest for name, digest in other.items() if name.endswith(".jpg")}
    assert not any("C. Loc" in name for name in tree(make_release(tmp_path / "d", localization=False, **counts)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": (1, 2, 3)}, "train"),
        ({"test": (1, 1, -1, 1, 1)}, "test"),
        ({"segmentation": (1.5, 0)}, "segmentation"),
        ({"seed": -1}, "seed"),
        ({"height": 63}, "height"),
        ({"height": 71200}, "height"),
        ({"train": (0,) * 5, "test": (0,) * 5, "segmentation": (0, 0)}, "at least one photograph"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_release(tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_a_photograph_out_of_range_is_refused():
    with pytest.raises(UserError, match="grade 5"):
        draw(0, 5)
    with pytest.raises(UserError, match="63x100"):
        draw(0, 0, 63, 100)


@pytest.fixture(scope="module")
def classes():
    """(300 training, 100 test) photographs as PIL images; photograph i has grade i % 5."""
    return [[Image.fromarray(draw([9, part, i], i % 5).image) for i in range(n)] for part, n in ((0, 300), (1, 100))]


def crops(images, size):
    """The central squares of the field of view, float32 [N, R, R, 3] in [0, 1], and the grades."""
    left = CENTER * WIDTH - HEIGHT / 2
    box = (left, 0, left + HEIGHT, HEIGHT)
    small = [np.asarray(image.resize((size, size), Image.Resampling.BOX, box)) for image in images]
    return np.array(small, np.float32) / 255, np.arange(len(small)) % 5


def spots(images):
    """Count pixels in dark or bright spots, by scale and contrast: [N, 30].

    Spots, unlike vessels, curve in both directions: the smaller eigenvalue of the Hessian of log green.
    """
    size = images.shape[1]
    x = np.arange(size) + 0.5 - size / 2
    inside = np.hypot(x, x[:, None]) < 0.46 * DIAMETER * size
    found, image = [], np.log(images[..., 1] + 0.05)
    for smoothings in (1, 2, 5):  # binomial, with total variances of 0.5, 1.5 and 4 pixels
        for axis in (1, 2) * smoothings:
            image = (np.roll(image, 1, axis) + 2 * image + np.roll(image, -1, axis)) / 4
        dy, dx = np.gradient(image, axis=(1, 2))
        (dyy, dyx), dxx = np.gradient(dy, axis=(1, 2)), np.gradient(dx, axis=2)
        mean, spread = (dyy + dxx) / 2, np.hypot((dyy - dxx) / 2, dyx)
        for curvature in (mean - spread, -mean - spread):
            strong = curvature[:, inside, None] * smoothings > np.array([0.005, 0.01, 0.02, 0.04, 0.08])
            found.append(np.log1p(strong.sum(1)))
    return np.concatenate(found, 1)


def network(params, x):
    """Local contrast of log colour, four convolutions, mean and maximum over the image, five logits."""
    x = jnp.log(x + 0.02)
    mean = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 7, 7, 1), (1, 1, 1, 1), "SAME") / 49
    x = jnp.clip((x - mean) * 6, -3, 3)
    for i, (w, b) in enumerate(params[:-1]):
        stride = (1, 1) if i == 0 else (2, 2)
        x = jax.lax.conv_general_dilated(x, w, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + b)
    w, b = params[-1]
    return jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1) @ w + b


def fit(logits, params, batches, rate, steps):
    """Adam with a cosine schedule on cross-entropy; `batches` yields (inputs, grades)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _, (x, y) in zip(range(steps), batches, strict=False):
        params, state = step(params, state, x, y)
    return params


def agreement(truth, found):
    """(quadratic weighted kappa (Cohen 1968), recall per grade [5])."""
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (truth, found), 1)
    distance = np.subtract.outer(np.arange(5), np.arange(5)) ** 2
    chance = np.outer(confusion.sum(1), confusion.sum(0)) / confusion.sum()
    return 1 - (distance * confusion).sum() / (distance * chance).sum(), confusion.diagonal() / confusion.sum(1)


@pytest.mark.slow  # trains on 300 photographs
def test_a_linear_classifier_separates_all_grades_at_64_pixels(classes):
    """The grade is visible in the photographs themselves, so training on the phantom is meaningful."""
    (images, grades), (held_out, truth) = (crops(part, 64) for part in classes)
    seen, held_out = spots(images), spots(held_out)
    seen, held_out = ((part - seen.mean(0)) / (seen.std(0) + 1e-3) for part in (seen, held_out))

    def logits(params, x):
        return x @ params[0] + params[1]

    params = fit(logits, (jnp.zeros((seen.shape[1], 5)), jnp.zeros(5)), itertools.repeat((seen, grades)), 0.05, 200)
    kappa, recall = agreement(truth, np.asarray(logits(params, held_out).argmax(-1)))
    print(f"64 pixels: kappa {kappa:.3f}, balanced accuracy {recall.mean():.3f}")
    assert kappa > 0.85 and recall.mean() > 0.65 and recall.min() > 0.4


@pytest.mark.slow  # trains a small network
def test_a_small_network_reads_the_grade_at_32_pixels(classes):
    """The size of cgan32: single microaneurysms (grade 0 or 1) are not visible, other lesions are."""
    (images, grades), (held_out, truth) = (crops(part, 32) for part in classes)
    channels = (3, 12, 24, 32, 48)
    params = [
        (jax.random.normal(key, (3, 3, i, o)) * np.sqrt(2 / 9 / i), jnp.zeros(o))
        for key, i, o in zip(jax.random.split(jax.random.key(0), 4), channels[:-1], channels[1:], strict=True)
    ] + [(jnp.zeros((2 * channels[-1], 5)), jnp.zeros(5))]

    def batches(rng):
        while True:
            batch = rng.choice(len(images), 32, replace=False)
            yield images[batch][:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])], grades[batch]

    params = fit(network, params, batches(np.random.default_rng(0)), 4e-3, 250)
    kappa, recall = agreement(truth, np.asarray(jax.jit(network)(params, held_out).argmax(-1)))
    print(f"32 pixels: kappa {kappa:.3f}, balanced accuracy {recall.mean():.3f}")
    assert kappa > 0.6 and recall.mean() > 0.4
