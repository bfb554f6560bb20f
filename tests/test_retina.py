"""The residual networks, their conditioning on grades, and schedules, against formulas in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
from conftest import LATENT, TINY
from flax import nnx

from idrid_jax import cli
from idrid_jax import config as config_lib
from idrid_jax.models import NETWORKS, build_networks, convolution, layer_table, retina
from idrid_jax.models.functional import functional
from idrid_jax.training import monitoring
from idrid_jax.training.losses import LOSSES, Weights
from idrid_jax.training.optimizers import conditioning_strength, grade_conditioning
from idrid_jax.training.state import init_state
from idrid_jax.training.update import Update, make_update, update_networks

SIZE = 16
GENERATOR = functional(functools.partial(retina.Generator, SIZE, max_channels=8))
DISCRIMINATOR = functional(functools.partial(retina.Discriminator, SIZE, max_channels=8))


def random_params(network, dtype=np.float32):
    """Return parameters away from initialization, where every residual branch is 0."""
    rng = np.random.default_rng(0)
    shapes, stats = jax.eval_shape(network.init, jax.random.key(0))
    assert stats == {}
    return jax.tree.map(lambda x: (0.15 * rng.standard_normal(x.shape)).astype(dtype), shapes)


def latents(count=4):
    return jax.random.normal(jax.random.key(3), (count, retina.LATENT_SIZE))


def images(count=4, seed=5):
    return jax.random.uniform(jax.random.key(seed), (count, SIZE, SIZE, 3), minval=-1, maxval=1)


# -- Resampling


def test_upsample_is_bilinear_interpolation():
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3))
    at = [(np.arange(2 * size) + 0.5) / 2 - 0.5 for size in x.shape[1:3]]
    grid = np.meshgrid(*at, indexing="ij")
    expected = np.empty((2, 10, 14, 3))
    for n, c in np.ndindex(2, 3):
        expected[n, ..., c] = scipy.ndimage.map_coordinates(x[n, ..., c], grid, order=1, mode="nearest")
    np.testing.assert_allclose(retina.upsample(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_downsample_is_the_filter_1_3_3_1():
    x = np.random.default_rng(0).standard_normal((2, 8, 12, 3))
    expected = x
    for axis in (1, 2):
        filtered = scipy.ndimage.correlate1d(expected, np.array([1, 3, 3, 1]) / 8, axis=axis, mode="nearest", origin=0)
        # the centre of four taps is the third in SciPy: output i covers i - 2 .. i + 1
        expected = np.take(filtered, np.arange(1, expected.shape[axis], 2), axis=axis)
    np.testing.assert_allclose(retina.downsample(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_resampling_keeps_constants_and_removes_a_checkerboard():
    flat = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(retina.upsample(flat), 1)
    np.testing.assert_allclose(retina.downsample(flat), 1)
    checkers = jnp.asarray(np.indices((16, 16)).sum(0) % 2 * 2.0 - 1)[None, :, :, None]
    np.testing.assert_allclose(retina.downsample(checkers)[:, 1:-1, 1:-1], 0, atol=1e-6)


@pytest.mark.parametrize(("side", "levels"), [(8, 1), (64, 1), (128, 2)])
def test_detail_is_the_difference_from_32_pixels(side, levels):
    x = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    both = retina.add_detail_channels(jnp.asarray(x))
    np.testing.assert_array_equal(both[..., :3], x)
    lowpass = x
    for resample in levels * [retina.downsample] + levels * [retina.upsample]:
        lowpass = resample(lowpass)
    np.testing.assert_allclose(both[..., 3:], retina.DETAIL_GAIN * (x - lowpass), atol=1e-4)


def test_detail_is_computed_in_float32_for_bfloat16_images():
    wave = 0.8 + 0.01 * np.where(np.arange(64) % 2, 1, -1)[None, None, :, None] * np.ones((1, 64, 64, 3))
    detail = retina.add_detail_channels(jnp.asarray(wave, jnp.bfloat16))[..., 3:]
    exact = retina.add_detail_channels(jnp.asarray(jnp.asarray(wave, jnp.bfloat16), jnp.float32))[..., 3:]
    np.testing.assert_allclose(detail, exact, atol=1e-6)
    np.testing.assert_allclose(retina.add_detail_channels(jnp.ones((1, 8, 8, 3)))[..., 3:], 0, atol=1e-6)


# -- The networks


@pytest.mark.parametrize("size", [64, 1024])
def test_shapes_and_levels(size):
    network = NETWORKS[f"retina{size}"]
    assert (network.size, network.conditional, network.supports_conditioning_ramp) == (size, True, True)
    config = config_lib.default_config()
    config.network = f"retina{size}"
    generator, discriminator = build_networks(config)
    g, d = (jax.eval_shape(part.init, jax.random.key(0))[0] for part in (generator, discriminator))
    fake = jax.eval_shape(
        lambda g: generator.eval(g, {}, jnp.zeros((2, network.latent_size)), jnp.zeros(2, jnp.int32)), g
    )
    assert fake.shape == (2, size, size, 3)
    logits = jax.eval_shape(lambda d: discriminator.eval(d, {}, jnp.zeros(fake.shape), jnp.zeros(2, jnp.int32)), d)
    assert (logits.shape, logits.dtype) == ((2,), jnp.float32)
    assert (len(g["up"]), len(d["down"])) == (size.bit_length() - 3, size.bit_length() - 4)


def test_a_saturated_bfloat16_generator_has_gradients():
    generator = retina.Generator(8, max_channels=8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    generator.image.bias[...] = jnp.full(3, 6.0)  # 3.8 to 7 before tanh
    z, grades = jnp.ones((2, retina.LATENT_SIZE)), jnp.zeros(2, jnp.int32)
    gradients = nnx.jit(nnx.grad(lambda module: module(z, grades).sum()))(generator)
    assert (gradients["image"]["bias"][...] > 0).all()


def test_the_layer_table_does_not_depend_on_remat():
    config = configured(**{"model.max_channels": 16})
    plain = layer_table.networks_table(config)
    config.model.remat = True
    assert layer_table.networks_table(config) == plain and plain.count("Conv ") >= 15


def test_parameter_counts_of_64():
    config = config_lib.default_config()
    config.network, config.model.max_channels = "retina64", 128
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(part.init, jax.random.key(0))))
        for part in build_networks(config)
    ]
    assert counts == [1_044_883, 978_561]


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    d, x, grades = random_params(DISCRIMINATOR), images(), jnp.array([0, 1, 2, 3])
    logits = jax.jit(lambda x, grades: DISCRIMINATOR.eval(d, {}, x, grades))
    together = logits(x, grades)
    alone = jnp.concatenate([logits(x[i : i + 1], grades[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_grade_weights():
    g, z = random_params(GENERATOR), latents()
    generate = jax.jit(lambda grades: GENERATOR.eval(g, {}, z, grades))
    of = lambda grades: generate(jnp.asarray(grades))
    one_hot = np.eye(5, dtype=np.float32)[[0, 4, 2, 2]]
    np.testing.assert_allclose(of([0, 4, 2, 2]), of(one_hot), atol=1e-6)
    assert np.abs(of([0, 4, 2, 2]) - of([1, 3, 0, 4])).max() > 0.01
    unconditional = of(np.zeros((4, 5), np.float32))
    assert np.abs(unconditional - of(one_hot)).max() > 0.01


def test_the_logit_is_linear_in_the_conditioning_strength():
    d, x = random_params(DISCRIMINATOR), images()
    logits = jax.jit(lambda weights: DISCRIMINATOR.eval(d, {}, x, weights))
    of = lambda grades, strength: logits(strength * jnp.eye(5)[jnp.asarray(grades)])
    np.testing.assert_array_equal(of([0, 1, 2, 3], 0.0), of([4, 4, 0, 0], 0.0))
    half, whole = of([0, 1, 2, 3], 0.5), of([0, 1, 2, 3], 1.0)
    np.testing.assert_allclose(half, (of([0, 1, 2, 3], 0.0) + whole) / 2, atol=1e-5)


def test_coarse_levels_ignore_the_grade():
    """A generator of 8 x 8 pixels has only those."""
    coarse = functional(functools.partial(retina.Generator, retina.UNCONDITIONAL_SIZE, max_channels=8))
    g, z = random_params(coarse), latents()
    of = lambda grades: coarse.eval(g, {}, z, jnp.asarray(grades))
    np.testing.assert_array_equal(of([0, 1, 2, 3]), of([4, 4, 4, 4]))


def test_residual_branches_start_at_0():
    g, _ = GENERATOR.init(jax.random.key(0))
    d, _ = DISCRIMINATOR.init(jax.random.key(0))
    for level in (*g["up"].values(), *d["down"].values()):
        assert not np.any(level["last"]["kernel"])
    fake = jax.jit(GENERATOR.eval)(g, {}, latents(16), jnp.zeros(16, jnp.int32))
    assert 0.1 < float(fake.std()) < 0.9  # neither grey nor saturated


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])  # as long as False
def test_penalties_differentiate_twice_through_every_lowering(remat):
    """Gradients of R1 in the parameters of D in float64: the platform's convolutions against the native ones."""
    with jax.enable_x64(True):
        network = functional(
            functools.partial(retina.Discriminator, SIZE, max_channels=8, remat=remat, dtype=jnp.float64)
        )
        d = random_params(network, dtype=np.float64)
        x, grades = images().astype(jnp.float64), jnp.array([0, 1, 2, 3])

        def penalty(d):
            slope = jax.grad(lambda x: network.eval(d, {}, x, grades).sum())(x)
            return (slope**2).sum()

        gradients = []
        for lowering in ("platform", "native"):
            with convolution.lowering(lowering):
                gradients.append(jax.jit(jax.grad(lambda d: penalty(d)))(d))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * max(1e-3, float(np.abs(b).max())))


def test_bfloat16_is_close_to_float32():
    low = functional(functools.partial(retina.Discriminator, SIZE, max_channels=8, dtype=jnp.bfloat16))
    d, x, grades = random_params(DISCRIMINATOR), images(8), jnp.arange(8) % 5
    expected, got = (jax.jit(network.eval)(d, {}, x, grades) for network in (DISCRIMINATOR, low))
    assert got.dtype == jnp.float32
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected - expected.mean()).max() + 0.05


# -- Schedules


def configured(**changes):
    config = config_lib.default_config()
    config.network, config.batch_size = "retina64", 32
    config.update_from_flattened_dict(changes)
    return config


def test_conditioning_strength():
    fading = configured(**{"conditioning.start_kimg": 0.32, "conditioning.ramp_kimg": 0.64})
    hears = grade_conditioning(fading)
    grades = jnp.array([0, 3])
    for step, share in ((0, 0), (10, 0), (20, 0.5), (30, 1), (500, 1)):
        np.testing.assert_allclose(hears(grades, jnp.int32(step)), share * np.eye(5)[[0, 3]], atol=1e-5)
        assert conditioning_strength(fading, step) == pytest.approx(share, abs=1e-6)
        chosen = monitoring.checkpoint_score(fading, {fading.checkpoint.best: 0.5}, step)
        assert chosen == (0.5 if share == 1 else None)  # what hears its grades by half would be released mislabelled
    at_once = configured(**{"batch_size": 100, "conditioning.start_kimg": 0.3})
    assert [conditioning_strength(at_once, step) for step in (3, 4)] == pytest.approx([0, 1], abs=1e-6)
    assert (
        grade_conditioning(configured())(grades, jnp.int32(0)) is grades and conditioning_strength(configured(), 0) == 1
    )


def test_learning_rate_and_penalty_follow_the_cosine():
    """With plain gradient descent a parameter's step is the rate: read off Adam's first moments being 0."""
    config = configured(
        **{"schedule.kimg": 0.64, "schedule.learning_rate_factor": 0.0, "schedule.penalty_factor": 0.25}
    )
    config.optimizer.b1, config.optimizer.b2 = 0.0, 0.0  # every step is the rate times the gradient's sign
    update = make_update(config, (GENERATOR, DISCRIMINATOR))
    params, sizes = {"w": jnp.zeros(())}, []
    opt = update.g_optimizer.init(params)
    for _ in range(22):
        moved, opt = update.g_optimizer.update({"w": jnp.ones(())}, opt, params)
        sizes.append(-float(moved["w"]))
    expected = config.optimizer.g_learning_rate * (1 + np.cos(np.pi * np.minimum(np.arange(22) / 20, 1))) / 2
    np.testing.assert_allclose(sizes, expected, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(update.penalty_scale(jnp.int32(10)), 0.25 + 0.75 / 2, rtol=1e-5)
    np.testing.assert_allclose(update.penalty_scale(jnp.int32(99)), 0.25, rtol=1e-5)


def test_penalty_scale_multiplies_the_gradients_of_penalties():
    """Twice the scale is the same as twice the weight."""
    networks = [functional(TINY["tiny"].generator), functional(TINY["tiny"].discriminator)]

    def step(weight, scale):
        update = Update(
            *networks, optax.sgd(0.1), optax.sgd(0.1), latent=LATENT, loss=LOSSES["bce"],
            weights=Weights(r1=weight), penalty_scale=lambda step: scale,
        )  # fmt: skip
        state = init_state(jax.random.key(0), *networks, update.g_optimizer, update.d_optimizer)
        x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)), jnp.uint8)
        return jax.jit(functools.partial(update_networks, update))(
            state, x, jnp.array([0, 1, 2, 3]), jax.random.key(1)
        )[0]

    for a, b in zip(jax.tree.leaves(step(1.0, 2.0)), jax.tree.leaves(step(2.0, 1.0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_command_prints_automatic_values(capsys, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from idrid_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.network, config.loss.r1, config.ema_kimg = 'retina64', 'auto', 'auto'\n    return config\n"
    )
    command = ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}", "--config.batch_size=8"]
    assert cli.main([*command, "--dry_run"]) == 0
    assert '"r1": 0.1024' in capsys.readouterr().out
    assert cli.main([*command, f"--config.data.data_dir={tmp_path}"]) == 2  # nothing is prepared there
    printed = re.findall(r"^config\.(\S+) = (\S+)", capsys.readouterr().out, re.M)
    assert printed == [("ema_kimg", "2.5"), ("loss.r1", "0.1024")]
