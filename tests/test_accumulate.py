"""Updates in micro-batches: those of the whole batch, for less memory; and what is refused because it would not be."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CHANNELS, LATENT, SIZE, assert_same, changed, make_config, stats
from flax import nnx

from idrid_jax import config as config_lib
from idrid_jax import models, pixels
from idrid_jax.bench import program
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, Network, retina
from idrid_jax.models.functional import functional
from idrid_jax.plan import compile as compile_lib
from idrid_jax.training import accumulate, build, losses, mesh, objectives, step, stepper
from idrid_jax.training.augment import Augmentation, Strengths
from idrid_jax.training.loop import train
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import init_state
from idrid_jax.training.step import Update

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]
PIXELS, BATCH = 16, 8


def update_of(dtype=jnp.float32, **options):
    """A small retina's, by SGD with rate 1, so that a step is the gradient; and a state away from the start."""
    make = lambda module: functional(functools.partial(module, PIXELS, max_channels=8, dtype=dtype))
    g, d, sgd = make(retina.Generator), make(retina.Discriminator), optax.sgd(1.0)
    update = Update(g, d, sgd, sgd, latent=retina.LATENT, **options)
    adapts = bool(update.augment) and update.augment.p is None
    state = init_state(jax.random.key(0), g, d, sgd, sgd, ema=False, augment=adapts)
    rng = np.random.default_rng(1)
    away = lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), dtype)
    move = lambda network: dataclasses.replace(network, params=jax.tree.map(away, network.params))
    return update, dataclasses.replace(state, g=move(state.g), d=move(state.d))


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 5, BATCH), jnp.int32)


def close(a, b, tolerance):
    """Leaf by leaf, as a share of the largest value of each."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1e-3, float(np.abs(np.asarray(y)).max())))


class Wide:
    """jax.numpy whose float32 is float64."""

    def __getattr__(self, name):
        return getattr(jnp, "float64" if name == "float32" else name)


# -- The update


@pytest.mark.parametrize(
    "parts, options",
    [
        (4, dict(loss="relativistic", weights=Weights(r1=0.5, r2=0.3), flip=True)),
        (2, dict(loss="wasserstein", weights=Weights(gradient_penalty=1.0, penalty_every=2))),
    ],
    ids=["relativistic", "wasserstein"],
)
def test_micro_batches_make_the_update_of_the_batch(parts, options, monkeypatch):
    """Gradients in float64 to 1e-10, and metrics, over two updates: with and without a penalty due."""
    for module in (retina, losses, objectives, pixels, step):  # what is float32 there
        monkeypatch.setattr(module, "jnp", Wide())
    with jax.enable_x64(True):
        update, state = update_of(jnp.float64, **options)
        at_once, micro = jax.jit(update), jax.jit(dataclasses.replace(update, accumulate=parts))
        for key in (3, 4):
            whole, metrics = at_once(state, *batch(), jax.random.key(key))
            parted, metrics_of_parts = micro(state, *batch(), jax.random.key(key))
            change = lambda after: jax.tree.map(lambda a, b: a - b, (after.g.params, after.d.params), both)
            both = state.g.params, state.d.params
            close(change(parted), change(whole), 1e-10)
            assert metrics_of_parts.keys() == metrics.keys()
            for name, value in metrics.items():
                np.testing.assert_allclose(metrics_of_parts[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
            state = whole


def test_what_is_random_is_a_function_of_the_key_and_another_in_each_micro_batch():
    """Augmentation, which also adapts by the signs of all images."""
    looks = []

    class Looking(Augmentation):
        def __call__(self, images, key, state):
            jax.debug.callback(lambda key: looks.append(tuple(key.tolist())), jax.random.key_data(key))
            return super().__call__(images, key, state)

    augment = Looking(Strengths(rotation=10.0, brightness=0.2), p=None, images=100.0)
    update, state = update_of(loss="relativistic", augment=augment, accumulate=4)
    step = jax.jit(update)
    after, metrics = step(state, *batch(), jax.random.key(1))
    jax.effects_barrier()
    assert len(looks) == len(set(looks)) == 4 * 4  # D's real and fake, and again for G
    assert_same(step(state, *batch(), jax.random.key(1))[0], after)
    assert not np.array_equal(step(state, *batch(), jax.random.key(2))[0].d.params["logit"]["kernel"], after.d.params)
    assert float(metrics["augment_p"]) in (0.0, pytest.approx(BATCH / 100))  # a step of 8 images, not of 2


def test_every_device_gives_an_equal_part_of_its_images():
    """To each micro-batch; images, latents and the rest stay together."""
    count = jnp.arange(12)
    whole = accumulate.Batch(count, count, count, count, None, jax.random.split(jax.random.key(0), 5))
    parts = accumulate.parted(whole, 3)
    assert parts.images.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert parts.images.tolist() == parts.grades.tolist() == parts.z.tolist() and parts.mirrored is None
    drawn = {tuple(key) for key in jax.random.key_data(parts.keys).reshape(15, -1).tolist()}
    assert parts.keys.shape == (3, 5) and len(drawn) == 15


# -- Whole runs, of a network without BatchNorm that compiles in a second


class PlainGenerator(nnx.Module):
    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(LATENT, 8, dtype=dtype, rngs=rngs)
        self.image = nnx.Linear(8, SIZE * SIZE * CHANNELS, dtype=dtype, rngs=rngs)

    def __call__(self, z, grades):
        return jnp.tanh(self.image(nnx.relu(self.hidden(z)))).reshape(-1, SIZE, SIZE, CHANNELS)


class PlainDiscriminator(nnx.Module):
    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(SIZE * SIZE * CHANNELS, 8, dtype=dtype, rngs=rngs)
        self.logit = nnx.Linear(8, 1, dtype=dtype, rngs=rngs)

    def __call__(self, images, grades, *, rngs=None):
        return self.logit(nnx.leaky_relu(self.hidden(images.reshape(len(images), -1)), 0.2))[:, 0]


@pytest.fixture
def plain(phantom_data, monkeypatch):
    network = Network(PlainGenerator, PlainDiscriminator, SIZE, CHANNELS, True, LATENT, batch_norm=False)
    monkeypatch.setitem(NETWORKS, "plain", network)
    return make_config(phantom_data, "plain", loss__r1=0.5, loss__penalty_every=2, data__flip=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"dispatch_steps": 2, "data__way": "stream"}, {"mesh__data": 4, "mesh__fsdp": True}],
    ids=["resident", "two a call", "four devices"],
)
def test_a_run_in_micro_batches_is_the_run(plain, tmp_path, options):
    whole = train(plain, tmp_path / "whole")
    parted = train(changed(plain, accumulate=2, **options), tmp_path / "parted")
    for a, b in zip(jax.tree.leaves(whole.g.params), jax.tree.leaves(parted.g.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    told = [[row["loss_d"] for row in stats(tmp_path / name)] for name in ("whole", "parted")]
    np.testing.assert_allclose(*told, rtol=1e-3)


def test_micro_batches_may_change_when_a_run_goes_on(plain, tmp_path):
    train(changed(plain, total_kimg=0.048), tmp_path)
    assert int(train(changed(plain, accumulate=4), tmp_path).step) == 12


def test_each_device_computes_its_share_of_each_micro_batch(plain):
    """In the compiled step no product is over more than 48 / 8 / 2 images."""
    config = changed(plain, mesh__data=8, batch_size=48, accumulate=2)
    jitted, state, data = stepper.abstract_step(config, mesh.make_mesh(8))
    text = jitted.lower(state, *data).compile().as_text()
    rows = {int(count) for count in re.findall(rf"= f32\[(\d+),{SIZE * SIZE * CHANNELS}\]\S* dot\(", text)}
    assert rows and max(rows) <= 8  # 3 images; or 8 hidden features, of gradients
    assert not re.search(r"u8\[[\d,]+\]\S* (all-gather|all-to-all|collective-permute)\(", text)


# -- Memory and work


@pytest.fixture
def retina16(monkeypatch):
    monkeypatch.setitem(NETWORKS, "retina16", models._retina(16))
    return make_config("", "retina16", model__max_channels=8, batch_size=64, loss__name="relativistic", loss__r1=1.0)


def test_it_takes_less_memory_and_the_work_is_told(retina16):
    """By the compiler's account of the step; G's pass comes again, and the rest is what it was."""
    one = mesh.make_mesh(1)
    at_once, micro = (compile_lib.facts(changed(retina16, accumulate=parts), one) for parts in (1, 8))
    assert micro.memory["temporaries"] < at_once.memory["temporaries"] / 3
    assert 1 < micro.flops / at_once.flops < 1.5
    assert program.model_flops(changed(retina16, accumulate=8)) == program.model_flops(retina16)


# -- Refusals


def test_networks_say_whether_they_have_batch_norm():
    for name, network in NETWORKS.items():
        config = config_lib.default_config()
        config.network, config.model.max_channels = name, 512
        shapes = [jax.eval_shape(part.init, jax.random.key(0))[1] for part in build.networks(config)]
        assert any(jax.tree.leaves(shapes)) == network.batch_norm, name


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            {"network": "dcgan64"},
            "config.accumulate = 2: dcgan64 has BatchNorm, whose statistics would be those of a micro-batch: take 1 "
            "and a smaller config.batch_size; networks without it: cgan32, retina64, ",
        ),
        (
            {"loss__lecam": 0.3},
            "config.accumulate = 2: config.loss.lecam = 0.3 compares means over the whole batch, which a micro-batch "
            "does not have: set that to 0, or config.accumulate to 1",
        ),
        ({"loss__feature_matching": 0.1}, "config.accumulate = 2: config.loss.feature_matching = 0.1 compares means"),
        ({"accumulate": 0}, "config.accumulate = 0: must be at least 1"),
    ],
)
def test_what_would_be_another_algorithm_is_refused(changes, line):
    config = make_config("", "retina64", accumulate=2)
    with pytest.raises(UserError) as error:
        config_lib.check(changed(config, **changes))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_micro_batches_that_the_devices_cannot_share_are_refused(plain, tmp_path):
    with pytest.raises(
        UserError,
        match="^config.accumulate = 4: config.batch_size = 16 over 8 devices is 2 images for each, which cannot be "
        "parted so: take a divisor of 2, or a batch that is a multiple of 32$",
    ):
        train(changed(plain, accumulate=4, batch_size=16, mesh__data=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
