"""One training update against a plain reference that shares nothing, and against direct computations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CHANNELS, LATENT, SIZE, TINY, assert_same
from flax import nnx

from idrid_jax.images import to_float, to_uint8
from idrid_jax.models.functional import functional
from idrid_jax.training import losses, optimizers
from idrid_jax.training.losses import LOSSES, Weights
from idrid_jax.training.state import init_state
from idrid_jax.training.update import Update, metrics, update_networks

BATCH = 8
SGD = optax.sgd(0.05)
GENERATOR, DISCRIMINATOR = (
    functional(lambda rngs, make=make: make(rngs=rngs)) for make in (TINY["tiny"].generator, TINY["tiny"].discriminator)
)


def make(g_optimizer=SGD, d_optimizer=SGD, ema=False, **options):
    """Return a tiny update with SGD, and a fresh state."""
    update = Update(GENERATOR, DISCRIMINATOR, g_optimizer, d_optimizer, latent=LATENT, **options)
    parts = GENERATOR, DISCRIMINATOR, g_optimizer, d_optimizer
    init = functools.partial(init_state, ema=ema, lecam=bool(update.weights.lecam))
    return update, jax.jit(lambda key: init(key, *parts))(jax.random.key(0))


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, SIZE, SIZE, CHANNELS), np.uint8), rng.integers(0, 5, BATCH).astype(np.int32)


def run(update, state, key=7):
    return jax.jit(functools.partial(update_networks, update))(state, *batch(), jax.random.key(key))


def assert_close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max(initial=0)))


def reference(update, step, state, images, grades, key):
    """Compute each term by passes of its own and each gradient by its own jax.grad, the generator twice."""
    z_key, _, *pass_keys = jax.random.split(key, 5)
    share_key, between_key, again_key = jax.random.split(jax.random.fold_in(key, 5), 3)
    z, real = jax.random.normal(z_key, (BATCH, LATENT)), jnp.asarray(images, jnp.float32) / 127.5 - 1
    fake, g_stats = GENERATOR.train(state.g.params, state.g.stats, z, grades)
    weights, loss = update.weights, update.loss

    def module(params, stats):
        return nnx.merge(DISCRIMINATOR.train_graph, params, stats)

    def discriminate(params, stats, x, key):
        return DISCRIMINATOR.train(params, stats, x, grades, rngs=nnx.Rngs(dropout=key))

    def squared_slopes(params, x, key):
        logits = lambda x: discriminate(params, state.d.stats, x, key)[0].sum()
        return (jax.grad(logits)(x) ** 2).sum((1, 2, 3))

    def d_loss(params):
        real_logits, stats = discriminate(params, state.d.stats, real, pass_keys[0])
        fake_logits, stats = discriminate(params, stats, fake, pass_keys[1])
        adversarial = total = loss.discriminator(real_logits, fake_logits)
        if step % weights.penalty_every == 0:
            share = jax.random.uniform(share_key, (BATCH,))[:, None, None, None]
            between = share * real + (1 - share) * fake
            penalty = weights.r1 / 2 * squared_slopes(params, real, pass_keys[0]).mean()
            penalty += weights.r2 / 2 * squared_slopes(params, fake, pass_keys[1]).mean()
            if weights.gradient_penalty:
                norms = jnp.sqrt(squared_slopes(params, between, between_key))
                penalty += weights.gradient_penalty * ((norms - 1) ** 2).mean()
            total += weights.penalty_every * penalty
        averages = {}
        if weights.lecam:
            seen = 1 - 0.99**step  # sum of the weights of the batches so far
            for name, logits in (("real", real_logits), ("fake", fake_logits)):
                mean = jax.lax.stop_gradient(logits).mean()
                averages[name] = (0.99 * seen * state.lecam[name] + 0.01 * mean) / (0.99 * seen + 0.01)
            total += weights.lecam * (jnp.maximum(0, real_logits - averages["fake"]) ** 2).mean()
            total += weights.lecam * (jnp.maximum(0, averages["real"] - fake_logits) ** 2).mean()
        return total, (adversarial, real_logits, fake_logits, stats, averages)

    (_, aux), d_grads = jax.value_and_grad(d_loss, has_aux=True)(state.d.params)
    loss_d, real_logits, fake_logits, d_stats, averages = aux
    d_params = jax.tree.map(lambda p, g: p - 0.05 * g, state.d.params, d_grads)

    def g_loss(params):
        fake, _ = GENERATOR.train(params, state.g.stats, z, grades)
        stats, again = d_stats, None
        if loss.paired or weights.feature_matching:
            again, stats = discriminate(d_params, stats, real, again_key)
        logits, stats = discriminate(d_params, stats, fake, pass_keys[2])
        adversarial = loss.generator(logits, again) if loss.paired else loss.generator(logits)
        features = lambda x, key: module(d_params, d_stats).features(x, grades, rngs=nnx.Rngs(dropout=key)).mean(0)
        distance = ((features(real, again_key) - features(fake, pass_keys[2])) ** 2).sum()
        return adversarial + weights.feature_matching * distance, (adversarial, logits, stats)

    (_, (loss_g, after, d_stats)), g_grads = jax.value_and_grad(g_loss, has_aux=True)(state.g.params)
    g_params = jax.tree.map(lambda p, g: p - 0.05 * g, state.g.params, g_grads)
    sigmoid = lambda x: 1 / (1 + jnp.exp(-x))
    norm = lambda tree: jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))
    numbers = {
        "loss_d": loss_d,
        "loss_g": loss_g,
        "d_real": sigmoid(real_logits).mean(),
        "d_fake_before": sigmoid(fake_logits).mean(),
        "d_fake_after": sigmoid(after).mean(),
        "grad_norm_d": norm(d_grads),
        "grad_norm_g": norm(g_grads),
    }
    return (g_params, g_stats, d_params, d_stats, averages), numbers


EVERYTHING = Weights(r1=0.7, r2=0.4, gradient_penalty=0.6, penalty_every=2, lecam=0.5, feature_matching=0.8)
CASES = {
    "bce": ("bce", Weights()),
    "hinge": ("hinge", Weights(r2=0.7)),
    "relativistic, r1 and r2": ("relativistic", Weights(r1=0.7, r2=0.4)),
    "wasserstein, gradient penalty": ("wasserstein", Weights(gradient_penalty=3.0)),
    "everything": ("relativistic", EVERYTHING),
}


@pytest.mark.parametrize("name", CASES)
def test_the_update_equals_the_reference(name):
    """Parameters, batch statistics, averages and metrics over two updates, with BatchNorm and dropout; with
    "everything" the penalties are due at the first of them alone."""
    loss, weights = CASES[name]
    update, state = make(loss=LOSSES[loss], weights=weights)
    with jax.default_matmul_precision("highest"):
        for key in (7, 8):
            plain = jax.jit(functools.partial(reference, update, int(state.step)))
            expected, numbers = plain(state, *batch(), jax.random.key(key))
            state, found = run(update, state, key)
            assert_close((state.g.params, state.g.stats, state.d.params, state.d.stats, state.lecam), expected)
            assert_close({name: found[name] for name in numbers}, numbers)
    assert int(state.step) == 2
    terms = {"r1", "r2", "gradient_penalty", "lecam", "feature_matching"}
    assert terms & found.keys() == {name for name in terms if getattr(weights, name)}
    assert all(value.dtype == jnp.float32 and np.isfinite(value) for value in found.values())


def test_the_generator_is_updated_against_the_updated_discriminator():
    """D's learning rate changes the generator's update, but not D's own loss."""
    frozen, state = make(d_optimizer=optax.sgd(0.0))
    learning, _ = make(d_optimizer=optax.sgd(0.5))
    (a, before), (b, after) = run(frozen, state), run(learning, state)
    assert_same(a.d.params, state.d.params)
    assert before["loss_d"] == after["loss_d"] and before["d_fake_before"] == after["d_fake_before"]
    assert abs(float(before["loss_g"]) - float(after["loss_g"])) > 1e-3
    assert not np.allclose(a.g.params["image"]["kernel"], b.g.params["image"]["kernel"], atol=1e-6)


def test_an_update_is_a_function_of_its_key():
    update, state = make()
    first, again, other = run(update, state, 3), run(update, state, 3), run(update, state, 4)
    assert_same(first, again)
    assert not np.array_equal(first[0].g.params["image"]["kernel"], other[0].g.params["image"]["kernel"])


def test_metrics_count_images_or_pairs():
    """Accuracy is of images if a logit of 0 is the boundary, else of pairs."""
    real, fake = jnp.array([3.0, 5.0, 2.0, 4.0]), jnp.array([1.0, 6.0, 1.5, -1.0])
    report = {"loss": 0.0, "terms": {}, "grad_norm": 0.0}
    found = {
        name: float(metrics(loss, report | {"logits": (real, fake)}, report | {"fake_logits": fake}, {})["d_accuracy"])
        for name, loss in LOSSES.items()
    }
    assert found == {"bce": 5 / 8, "hinge": 5 / 8, "relativistic": 3 / 4, "wasserstein": 3 / 4}


# -- Gradient penalties


def test_lazy_penalties_are_taken_at_every_third_update_with_three_times_the_weight():
    update, state = make(weights=Weights(r1=0.5, gradient_penalty=0.5, penalty_every=3))
    without, full = (make(weights=weights)[0] for weights in (Weights(), Weights(r1=1.5, gradient_penalty=1.5)))
    for step in range(4):
        at = dataclasses.replace(state, step=jnp.int32(step))
        (after, found), (plain, _), (strong, expected) = (run(one, at) for one in (update, without, full))
        assert_close(after.d.params, (plain if step % 3 else strong).d.params, 1e-6)
        factor = 0 if step % 3 else 3
        for name in ("r1", "gradient_penalty"):
            assert found[name] == pytest.approx(factor * float(expected[name]), rel=1e-5)
        assert found["loss_d"] == pytest.approx(float(expected["loss_d"]), rel=1e-5)  # the adversarial part alone


def test_r1_flattens_the_discriminator():
    slopes = {}
    for r1 in (0.0, 30.0):
        update, state = make(weights=Weights(r1=r1 or 1e-12))
        step = jax.jit(functools.partial(update_networks, update))
        for i in range(40):
            state, found = step(state, *batch(), jax.random.key(i))
        slopes[r1] = float(found["r1"])
    assert slopes[30.0] < slopes[0.0] / 3


def test_penalties_leave_the_batch_statistics_alone():
    frozen = dict(d_optimizer=optax.sgd(0.0))
    penalized, state = make(weights=Weights(gradient_penalty=1.0, r1=1.0, r2=1.0), **frozen)
    assert_close(run(penalized, state)[0].d.stats, run(make(**frozen)[0], state)[0].d.stats, 1e-6)


# -- Options


class Echo:
    """A network that returns constant images, or keeps the images that it gets among its statistics."""

    def train(self, params, stats, x, grades, rngs=None):
        if rngs is None:  # as generator
            image = jnp.arange(SIZE * SIZE * CHANNELS, dtype=jnp.float32).reshape(SIZE, SIZE, CHANNELS) / 200
            return jnp.tile(image, (len(x), 1, 1, 1)) + params["w"], stats
        return x.mean((1, 2, 3)) + params["w"], {"seen": stats["seen"] + (x,)}


def test_flip_mirrors_about_half_of_the_real_images():
    _, state = make()
    params, sgd = {"w": 0.0}, optax.sgd(0.0)
    network = dataclasses.replace(state.g, params=params, stats={"seen": ()}, opt=sgd.init(params))
    images, grades = (np.tile(x, (25, *[1] * (x.ndim - 1))) for x in batch())
    seen = []
    for flip in (False, True):
        update = Update(Echo(), Echo(), sgd, sgd, latent=LATENT, flip=flip)
        after, _ = update_networks(
            update, dataclasses.replace(state, g=network, d=network), images, grades, jax.random.key(0)
        )
        seen.append(after.d.stats["seen"])
    (real, *fakes), (flipped, *fakes_with_flip) = seen
    assert_same(fakes, fakes_with_flip)
    same, mirrored = ((flipped == x).all((1, 2, 3)) for x in (real, real[:, :, ::-1]))
    assert (same ^ mirrored).all() and 70 <= mirrored.sum() <= 130


def test_clipping_bounds_the_update_and_not_the_logged_norm():
    clip = lambda norm: optax.chain(optax.clip_by_global_norm(norm), optax.sgd(1.0))
    update, state = make(g_optimizer=clip(0.01), d_optimizer=clip(0.02))
    after, found = run(update, state)
    for network, norm in (("g", 0.01), ("d", 0.02)):
        moved = jax.tree.map(jnp.subtract, getattr(after, network).params, getattr(state, network).params)
        assert float(found[f"grad_norm_{network}"]) > norm
        np.testing.assert_allclose(optax.global_norm(moved), norm, rtol=1e-3)


def test_label_smoothing_puts_the_optimum_at_its_target():
    """D's best answer to a real image is 1 - e."""
    gradient = jax.grad(lambda real: losses.discriminator_bce(real, jnp.zeros(1), 0.1))
    best = jnp.log(jnp.array([0.9 / 0.1]))
    assert abs(gradient(best)[0]) < 1e-6 and gradient(best + 1)[0] > 0 > gradient(best - 1)[0]


# -- Moving average


def test_ema_halves_in_its_half_life():
    decay, average, late = optimizers.ema_decay(batch_size=32, half_life_kimg=3.2), jnp.float32(1), 10_000_000
    for step in range(100):  # 100 x 32 images, long after the young average's cap
        average = optimizers.update_ema(average, jnp.float32(0), decay, jnp.int32(late + step))
    np.testing.assert_allclose(average, 0.5, rtol=1e-4)


@pytest.mark.parametrize(
    "decay, step, expected", [(0.999999, 0, 0.1), (0.999999, 90, 0.91), (0.9, 1000, 0.9), (0.9, None, 0.9)]
)
def test_a_young_ema_has_a_smaller_decay(decay, step, expected):
    """The decay at step k is at most (1 + k) / (10 + k)."""
    step = None if step is None else jnp.int32(step)
    np.testing.assert_allclose(optimizers.update_ema(jnp.float32(1), jnp.float32(0), decay, step), expected, rtol=1e-5)


def test_the_average_follows_the_generator_and_is_sampled():
    update, state = make(ema=True, ema_decay=0.99)
    assert_same(state.ema, state.g.params)
    after, _ = run(update, state)
    assert_close(after.ema, jax.tree.map(lambda a, p: 0.1 * a + 0.9 * p, state.g.params, after.g.params), 2e-6)
    assert_same(after.sampling_params, after.ema)
    without, plain = make()
    plain_after, _ = run(without, plain)
    assert plain_after.ema == {}
    assert_same(plain_after.g, after.g)  # nothing else changes
    assert_same(plain_after.sampling_params, plain_after.g.params)


# -- uint8 <-> float


def test_uint8_to_float_and_back():
    every = np.arange(256, dtype=np.uint8)
    as_float = to_float(every)
    assert as_float.dtype == jnp.float32 and as_float[0] == -1 and as_float[-1] == 1
    assert (np.asarray(jax.jit(lambda x: to_uint8(to_float(x)))(every)) == every).all()
    assert to_uint8(jnp.array([-3.0, 3.0])).tolist() == [0, 255]
