"""Augmentation against formulas in float64, SciPy and finite differences; in the update, on meshes, in runs, and its
sheet."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ADAPTIVE, LATENT, SIZE, TINY, assert_same, changed, make_config, stats, train
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from idrid_jax import cli
from idrid_jax import config as config_lib
from idrid_jax.errors import UserError
from idrid_jax.models.functional import functional
from idrid_jax.training import augment, sharding
from idrid_jax.training.augment import MEAN_LIGHT, Augmentation, Strengths
from idrid_jax.training.checkpoint import read_run
from idrid_jax.training.losses import LOSSES, Weights
from idrid_jax.training.state import init_state
from idrid_jax.training.update import Update, update_networks

ALL = Strengths(rotation=25, zoom=0.2, shift=0.1, brightness=0.3, contrast=0.3, saturation=0.4)
SHIFTED = Strengths(shift=0.1, brightness=0.3)  # compiles in a third of the time that ALL takes
STRONG = Strengths(rotation=180, zoom=0.4, shift=0.5)
MILD = augment.strengths_from_config(config_lib.default_config())
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (6, 12, 12, 3))
KEY = jax.random.key(3)


def keys(distance):
    """Of all pixels, as the paper has it (Keys 1981, equation 15)."""
    s = np.abs(distance)
    inner, outer = 3 / 2 * s**3 - 5 / 2 * s**2 + 1, -1 / 2 * s**3 + 5 / 2 * s**2 - 4 * s + 2
    return np.select([s < 1, s < 2], [inner, outer], 0.0)


def moved(light, affine):
    """One image in float64, every pixel of it weighed for every new one; affine: u, v, rows, columns."""
    u, v, *shift = np.asarray(affine, np.float64)
    size = len(light)
    index, center = np.arange(size), (size - 1) / 2
    new = np.stack(np.meshgrid(index, index, indexing="ij"), -1) - center - shift
    y, x = np.moveaxis(new @ np.array([[u, v], [-v, u]]).T + center, -1, 0)
    return np.einsum("oqi,oqj,ijc->oqc", keys(y[..., None] - index), keys(x[..., None] - index), light)


def relit(light, b, c, s):
    light = (1 + b) * light
    m = light.mean(-1, keepdims=True)
    light = (1 + 2 * c * (m - MEAN_LIGHT) / (m + MEAN_LIGHT)) * light
    m = light.mean(-1, keepdims=True)
    return m + (1 + s) * (light - m)


def reference(images, amounts):
    """float64; the amounts of `augment.sample_amounts`."""
    amounts = {name: np.asarray(amount, np.float64) for name, amount in amounts.items()}
    out = []
    for i, image in enumerate(np.asarray(images, np.float64)):
        angle, zoom = np.deg2rad(amounts["rotation"][i, 0]), amounts["zoom"][i, 0]
        zoom = 1 + zoom if zoom > 0 else 1 / (1 - zoom)
        affine = np.cos(angle) / zoom, np.sin(angle) / zoom, *(amounts["shift"][i] * len(image))
        light = relit(image + 1, *(amounts[name][i, 0] for name in ("brightness", "contrast", "saturation")))
        out.append(moved(light, affine) - 1)
    return np.stack(out)


# -- The transforms


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_images_are_the_formulas(p):
    found = jax.jit(lambda x, p: augment.apply(x, KEY, p, ALL))(jnp.float32(IMAGES), p)
    expected = reference(IMAGES, augment.sample_amounts(KEY, len(IMAGES), p, ALL))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - IMAGES).max() > 0.3


@pytest.mark.parametrize("name", augment.TRANSFORMS)
def test_each_transform_alone(name):
    alone = Strengths(**{name: getattr(ALL, name)})
    amounts = augment.sample_amounts(KEY, len(IMAGES), 1.0, alone)
    assert {other for other, amount in amounts.items() if (amount != 0).any()} == {name}
    found = augment.apply(jnp.float32(IMAGES), KEY, 1.0, alone)
    np.testing.assert_allclose(found, reference(IMAGES, amounts), atol=1e-5)
    # the same amounts as beside the others: one that is turned off changes none of the rest
    assert_same(amounts[name], augment.sample_amounts(KEY, len(IMAGES), 1.0, ALL)[name])


def test_the_resampling_keeps_what_a_bilinear_one_blurs():
    """Half a pixel to the right: parabolas are exact, and a wave of 8/3 pixels keeps more than half of its height."""
    index = np.arange(24.0)
    affine = jnp.float32([[1, 0, 0, -0.5]])  # new pixel o is what lies at o + 0.5
    along = lambda row: np.asarray(augment.resample(jnp.float32(np.tile(row, (24, 1)))[None, ..., None], affine, 5))
    inside = slice(4, -4)
    np.testing.assert_allclose(along(index**2)[0, 12, inside, 0], (index + 0.5)[inside] ** 2, rtol=1e-5)
    wave = lambda x: np.cos(0.75 * np.pi * x)
    found = along(wave(index))[0, 12, inside, 0]
    share = (found @ wave(index + 0.5)[inside]) / np.square(wave(index + 0.5)[inside]).sum()
    assert 0.53 < share < 0.56  # of which the mean of two neighbors would keep 0.38


def test_directions():
    """What the amounts mean: down and right, counter-clockwise as one sees it, larger."""
    amounts = lambda **given: {name: jnp.float32([given.get(name, (0, 0))]) for name in augment.TRANSFORMS}
    spot = np.zeros((1, 9, 9, 1), np.float32)
    spot[0, 4, 6] = 1
    affine = lambda **given: augment.affine_parameters(amounts(**given), 9)
    at = lambda light: tuple(map(int, np.unravel_index(np.argmax(light), light.shape)))[1:3]
    assert at(augment.resample(spot, affine(shift=(1 / 9, -2 / 9)), 5)) == (5, 4)
    assert at(augment.resample(spot, affine(rotation=(90, 0)), 8)) == (2, 4)
    large, small = (augment.resample(spot, affine(zoom=(z, 0)), 8).sum() for z in (0.3, -0.3))
    assert large > 1 > small


def test_black_stays_black_and_hue_stays():
    surround = augment.apply(-jnp.ones((8, 12, 12, 3)), KEY, 1.0, ALL)
    assert (surround == -1).all()
    light = jnp.broadcast_to(jnp.float32([1.2, 0.6, 0.2]), (8, 4, 4, 3))
    after = augment.adjust_light(light, augment.sample_amounts(KEY, 8, 1.0, dataclasses.replace(ALL, saturation=0)))
    np.testing.assert_allclose(after / after[..., :1], light / light[..., :1], rtol=1e-5)
    rising = jnp.linspace(0, 6, 100).reshape(1, 1, 100, 1)
    for contrast in (-0.5, 0.5):
        zero = jnp.zeros((1, 2))
        curve = augment.adjust_light(rising, {"brightness": zero, "contrast": zero + contrast, "saturation": zero})
        assert (np.diff(curve.ravel()) > 0).all()


def test_grey_images_have_no_saturation():
    grey = jnp.float32(IMAGES[..., :1])
    found = augment.apply(grey, KEY, 1.0, ALL)
    np.testing.assert_allclose(found, reference(grey, augment.sample_amounts(KEY, len(grey), 1.0, ALL)), atol=1e-5)
    assert_same(augment.apply(grey, KEY, 1.0, Strengths(saturation=0.5)), grey)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_0_it_is_the_identity_bit_for_bit(dtype):
    """Forward and backward, p traced; and at a small p, those images to which no transform is applied."""
    images = jnp.asarray(np.tile(IMAGES, (4, 1, 1, 1)), dtype)
    gradient = jnp.asarray(RNG.normal(size=images.shape), dtype)

    @jax.jit
    def both(p, images, gradient):
        shown, back = jax.vjp(lambda x: augment.apply(x, KEY, p, ALL), images)
        return shown, back(gradient)[0]

    assert_same(both(jnp.float32(0), images, gradient), (images, gradient))
    shown, back = both(jnp.float32(0.15), images, gradient)
    amounts = augment.sample_amounts(KEY, len(images), 0.15, ALL)
    untouched = ~np.any([(amount != 0).any(-1) for amount in amounts.values()], axis=0)
    assert 0 < untouched.sum() < len(images)
    assert_same((shown[untouched], back[untouched]), (images[untouched], gradient[untouched]))
    assert (np.abs(shown - images).max((1, 2, 3)) > 0).tolist() == (~untouched).tolist()


def test_geometry_is_float32_in_bfloat16():
    images = jnp.bfloat16(IMAGES)
    shown = augment.apply(images, KEY, 1.0, ALL)
    assert shown.dtype == jnp.bfloat16
    assert_same(shown, augment.apply(images.astype(jnp.float32), KEY, 1.0, ALL).astype(jnp.bfloat16))


def test_each_is_applied_with_probability_p_and_stays_within_its_strength():
    amounts = {p: augment.sample_amounts(KEY, 4000, p, ALL) for p in (0.3, 1.0)}
    is_applied = {name: np.asarray((amount != 0).any(-1)) for name, amount in amounts[0.3].items()}
    assert all(abs(applied.mean() - 0.3) < 0.04 for applied in is_applied.values())
    assert np.abs(np.corrcoef(list(is_applied.values())) - np.eye(6)).max() < 0.06
    for name, amount in amounts[1.0].items():
        strength = getattr(ALL, name)
        assert (np.abs(amount) <= strength).all() and np.abs(amount).max() > 0.98 * strength
        assert abs(np.mean(amount)) < 0.05 * strength  # symmetric
        assert_same(amounts[0.3][name][is_applied[name]], amount[is_applied[name]])
    assert np.abs(np.corrcoef(amounts[1.0]["shift"].T)[0, 1]) < 0.06


# -- Gradients


@pytest.mark.parametrize(("strengths", "window"), [(MILD, 5), (ALL, 7), (STRONG, 8)], ids=["mild", "all", "strong"])
def test_the_adjoint_is_that_of_the_resampling(strengths, window):
    """All of it: autodiff's own scatter, in float64."""
    assert strengths.window == window
    with jax.enable_x64(True):
        light, gradient = (jnp.asarray(RNG.normal(size=(40, 12, 12, 3))) for _ in range(2))
        affine = augment.affine_parameters(augment.sample_amounts(KEY, 40, 1.0, strengths), 12)
        forward = lambda x: augment._gather(x, affine, window)
        (expected,) = jax.linear_transpose(forward, light)(gradient)
        shown, back = jax.vjp(lambda x: augment.resample(x, affine, window), light)
        again = jax.grad(lambda g: (back(g)[0] * light).sum())(gradient)
        for found, wanted in ((shown, forward(light)), (back(gradient)[0], expected), (again, shown)):
            np.testing.assert_allclose(found, wanted, atol=2e-5)  # places are float32's


def slopes(function, x, tries=2):
    """Directional derivatives by autodiff and by central differences."""
    gradient = jax.grad(function)(x)
    for seed in range(tries):
        direction = np.random.default_rng(seed).normal(size=x.shape)
        step = 1e-5 * direction
        yield (gradient * direction).sum(), (function(x + step) - function(x - step)) / 2e-5


def test_gradients_are_finite_differences_and_those_of_a_penalty():
    """Once, and of the squared gradient of a curved discriminator behind the transforms; in float64."""
    with jax.enable_x64(True):
        x, w = jnp.asarray(IMAGES[:4]), jnp.asarray(RNG.normal(size=(4, 12, 12, 3)))
        shown = lambda x: augment.apply(x, KEY, 0.8, ALL)
        score = jax.jit(lambda x: jnp.tanh(shown(x) * w).sum())
        penalty = jax.jit(lambda x: (jax.grad(lambda x: jnp.tanh(shown(x) * w).sum())(x) ** 2).sum())
        for found, expected in (*slopes(score, x), *slopes(penalty, x)):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(w).sum() / 100)


# -- In the update

GENERATOR, DISCRIMINATOR = (
    functional(lambda rngs, make=make: make(rngs=rngs)) for make in (TINY["tiny"].generator, TINY["tiny"].discriminator)
)
SGD = optax.sgd(0.05)
BATCH = 8


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8), rng.integers(0, 5, BATCH).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Behind:
    """A discriminator that sees augmented images whatever it is given."""

    augment: Augmentation
    p: float

    def _shown(self, x, rngs):
        key = jax.random.fold_in(rngs.dropout.key[...], augment.KEY_STREAM)
        return augment.apply(x, key, self.p, self.augment.strengths)

    def train(self, params, stats, x, grades, rngs):
        return DISCRIMINATOR.train(params, stats, self._shown(x, rngs), grades, rngs=rngs)

    def train_features(self, params, stats, x, grades, rngs):
        return DISCRIMINATOR.train_features(params, stats, self._shown(x, rngs), grades, rngs=rngs)


def make(discriminator=DISCRIMINATOR, p=None, **options):
    """A tiny update with SGD, and a fresh state, which begins at `p` where it is given."""
    update = Update(GENERATOR, discriminator, SGD, SGD, latent=LATENT, **options)
    adapts = update.augment is not None and update.augment.p is None
    state = init_state(jax.random.key(0), GENERATOR, DISCRIMINATOR, SGD, SGD, adaptive_augment=adapts)
    if adapts and p is not None:
        state = dataclasses.replace(state, augment={"p": jnp.float32(p), "r": jnp.float32(0)})
    return update, state


def test_the_update_is_that_of_a_discriminator_behind_the_transforms():
    """All discriminator passes, real and fake, of both objectives and the penalties, each with a key of its own."""
    augmentation = Augmentation(SHIFTED, p=None)
    weights = Weights(r1=0.7, r2=0.4, gradient_penalty=0.6, feature_matching=0.8)
    options = dict(loss=LOSSES["relativistic"], weights=weights, flip=True)
    update, state = make(augment=augmentation, p=0.7, **options)
    behind, plain = make(Behind(augmentation, 0.7), **options)
    after, metrics = jax.jit(functools.partial(update_networks, update))(state, *batch(), jax.random.key(7))
    expected, expected_metrics = jax.jit(functools.partial(update_networks, behind))(plain, *batch(), jax.random.key(7))
    for found, x in zip(*(jax.tree.leaves((state.g, state.d)) for state in (after, expected)), strict=True):
        np.testing.assert_allclose(found, x, atol=1e-5)
    assert metrics.keys() - expected_metrics.keys() == {"augment_p", "augment_r"} and expected.augment == {}
    assert_same(after.augment, {"p": metrics["augment_p"], "r": metrics["augment_r"]})


def test_p_is_the_constant_or_the_state_s():
    images = jnp.float32(IMAGES)
    expected = augment.apply(images, jax.random.fold_in(KEY, augment.KEY_STREAM), 0.4, SHIFTED)
    assert_same(Augmentation(SHIFTED, 0.4)(images, KEY, {}), expected)
    assert_same(Augmentation(SHIFTED, None)(images, KEY, {"p": jnp.float32(0.4), "r": jnp.float32(0)}), expected)
    assert_same(Augmentation(SHIFTED, None)(images, KEY, augment.initial_state()), images)


# -- ADA


def test_p_is_the_recursion():
    """In float64, through both ends, with the mean of what was seen so far."""
    augmentation, batch_size = Augmentation(SHIFTED, None, target=0.3, adapt_images=800.0), 32
    state, decay = augment.initial_state(), 0.5 ** (batch_size / augment.SIGN_HALF_LIFE)
    p, weighted, weights, path = 0.0, 0.0, 0.0, []
    adapt = jax.jit(augmentation.adapt)
    for step in range(120):
        logits = RNG.normal(0.9 if step % 60 < 35 else -0.8, 1, batch_size)
        logits[0] = 0
        state = adapt(state, jnp.float32(logits), jnp.int32(step))
        weighted, weights = decay * weighted + np.sign(logits).mean(), decay * weights + 1
        p = np.clip(p + np.sign(weighted / weights - 0.3) * batch_size / 800, 0, 1)
        np.testing.assert_allclose((state["p"], state["r"]), (p, weighted / weights), atol=1e-5)
        path.append(p)
    assert max(path) == 1 and min(path[40:]) < 0.5 and {x.dtype for x in state.values()} == {jnp.dtype("float32")}
    late = adapt({"p": jnp.float32(0.5), "r": jnp.float32(0.9)}, -jnp.ones(batch_size), jnp.int32(10**6))
    np.testing.assert_allclose(late["r"], decay * 0.9 - (1 - decay), rtol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "relativistic"])
def test_r_is_of_real_logits_and_of_their_lead_where_the_loss_is_of_pairs(loss):
    """A discriminator that calls everything real: sure by itself, and of no pair."""

    class Yes:
        def train(self, params, stats, x, grades, rngs):
            return 100 + x.mean((1, 2, 3)) + params["hidden"]["bias"].mean(), stats

    update, state = make(Yes(), augment=Augmentation(SHIFTED, None), loss=LOSSES[loss])
    _, metrics = jax.jit(functools.partial(update_networks, update))(state, *batch(), jax.random.key(7))
    images, grades = batch()
    z = jax.random.normal(jax.random.split(jax.random.key(7), 5)[0], (BATCH, LATENT))
    fake, _ = GENERATOR.train(state.g.params, state.g.stats, z, grades)
    lead = np.sign((images / 127.5 - 1).mean((1, 2, 3)) - fake.mean((1, 2, 3)))
    assert abs(lead.mean()) < 1
    np.testing.assert_allclose(metrics["augment_r"], 1 if loss == "bce" else lead.mean(), atol=1e-6)
    assert float(metrics["augment_p"]) == (np.float32(8e-5) if metrics["augment_r"] > 0.6 else 0)


# -- On meshes


@pytest.mark.slow  # float64, on nine devices
def test_a_mesh_computes_what_one_device_does():
    """An update with a penalty on eight devices, which split images too, in float64: states, metrics, p."""
    for x, y in zip(jax.tree.leaves(update_on(1, 1)), jax.tree.leaves(update_on(4, 2)), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)


def update_on(*layout):
    update, state = make(
        augment=Augmentation(SHIFTED, None), p=0.7, loss=LOSSES["relativistic"], weights=Weights(r1=0.5)
    )
    with jax.enable_x64(True):
        on = sharding.make_mesh(*layout)
        over = sharding.batch_sharding(on), sharding.image_sharding(on)
        whole = sharding.replicated(on)
        step = jax.jit(
            functools.partial(
                update_networks, dataclasses.replace(update, batch_sharding=over[0], image_sharding=over[1])
            ),
            in_shardings=(whole, over[1], over[0], whole),
            out_shardings=(whole, whole),
        )
        at = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        at = dataclasses.replace(at, augment=state.augment)
        at, metrics = step(at, *batch(), jax.random.key(7))
        return jax.tree.map(np.asarray, (at.g, at.d, at.augment, metrics))


def test_each_device_gathers_from_its_own_images():
    """Forward and backward: no image travels."""
    on = sharding.make_mesh(8)
    split = NamedSharding(on, PartitionSpec(sharding.DATA))
    images = jax.device_put(np.tile(np.float32(IMAGES), (4, 1, 1, 1)), split)

    def both(x, key):
        shown, back = jax.vjp(lambda x: augment.apply(x, key, 1.0, MILD), x)
        return shown, back(x)[0]

    compiled = jax.jit(both, out_shardings=split).lower(images, KEY).compile()
    text = compiled.as_text()
    assert "f32[3,12,12,3]" in text and "f32[24,12,12,3]" not in text and "all-gather" not in text
    for found, expected in zip(compiled(images, KEY), jax.jit(both)(np.asarray(images), KEY), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


# -- Runs


def test_p_adapts_and_is_logged_and_saved(config, tmp_path):
    state = train(changed(config, total_kimg=0.064, **ADAPTIVE), tmp_path)
    assert_same(read_run(tmp_path)[1], state)
    rows = stats(tmp_path)
    assert all(0 <= row["augment_p"] <= 1 and -1 <= row["augment_r"] <= 1 for row in rows)
    assert len({row["augment_p"] for row in rows}) > 2
    assert state.augment.keys() == {"p", "r"}
    with pytest.raises(UserError, match="config.augment.rotation: 0.0 -> 20.0"):
        train(changed(config, **ADAPTIVE | {"augment__rotation": 20.0}), tmp_path)


# -- Configuration


def test_augmentation_that_a_run_can_have():
    for changes in (
        dict(augment__mode="fixed", augment__p=0.5),
        dict(augment__mode="adaptive", augment__target=0.5, augment__kimg=10.0, loss__name="relativistic"),
        dict(augment__rotation=30.0),  # for the sheet, say
    ):
        config = make_config("", "cgan32", **changes)
        found = augment.augmentation_from_config(config)
        assert (found is None) == (config.augment.mode == "none")
        if found:
            assert found.p == (0.5 if config.augment.mode == "fixed" else None) and found.strengths == MILD
            assert found.adapt_images == config.augment.kimg * 1000
    assert set(augment.TRANSFORMS) == {field.name for field in dataclasses.fields(Strengths)}


# -- The sheet


def sheet(*arguments):
    return cli.main(["augment", *map(str, arguments)])


def test_the_sheet_shows_photographs_and_what_becomes_of_them(phantom_data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    common = ("--data_dir", phantom_data, "--size=32", "--rows=6", "--columns=4")
    assert sheet(*common, "--out", out) == 0
    said = capsys.readouterr().out
    assert [f"row {i}: train/IDRiD_" in said for i in range(1, 8)] == [True] * 6 + [False]
    assert [line.split("grade ")[1] for line in said.splitlines()[:6]] == list("012340")
    assert "rotation up to 10 degrees" in said and f"written to {out}" in said
    picture = np.asarray(Image.open(out))
    assert picture.shape == (6 * 34 - 2, 4 * 34 - 2, 3)
    tiles = [[picture[y : y + 32, x : x + 32].astype(int) for x in range(0, 136, 34)] for y in range(0, 204, 34)]
    for row in tiles:
        for i in range(1, 4):
            assert all(np.abs(row[i] - row[j]).mean() > 1 for j in range(i))
    before = out.read_bytes()
    sheet(*common, "--out", out, "--seed=1")
    assert out.read_bytes() != before
    sheet(*common, "--out", out)
    assert out.read_bytes() == before


def test_the_sheet_takes_a_configuration(phantom_data, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    path = tmp_path / "mine.py"
    path.write_text(
        "from idrid_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.network = 'dcgan28'\n    c.augment.rotation = 20.0\n"
        f"    c.data.data_dir = {str(phantom_data)!r}\n    return c\n"
    )
    only = [f"--config.augment.{name}=0" for name in augment.TRANSFORMS if name != "rotation"]
    assert sheet("--config", path, *only, "--out", out) == 0
    said = capsys.readouterr().out
    assert "p = 1: rotation up to 20 degrees\n" in said and "zoom" not in said
    assert np.asarray(Image.open(out)).shape == (5 * 30 - 2, 8 * 30 - 2)  # grey, 28 pixels
    for arguments, message in (
        ((*only, "--config.augment.rotation=0"), "config.augment: every transform is off"),
        (("--config.augment.zoom=1",), "config.augment.zoom = 1.0: must be in [0, 0.4]"),
        (("--config.augment.zom=1",), "did you mean augment.zoom?"),
        (("--data_dir", tmp_path), "no release has been prepared under"),
        (("--out", tmp_path / "sheet.jpg"), "name a file that ends in .png"),
    ):
        assert sheet("--config", path, "--out", out, *arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
