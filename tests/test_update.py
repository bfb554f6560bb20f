"""One alternating update against the formulas, a straightforward reference and direct computations."""

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
from idrid_jax.training import ema, losses
from idrid_jax.training.state import generator_params, init_state
from idrid_jax.training.update import Update, _accuracy

BATCH = 8
RATE = 0.05


GENERATOR, DISCRIMINATOR = (
    functional(lambda rngs, make=make: make(rngs=rngs)) for make in (TINY["tiny"].generator, TINY["tiny"].discriminator)
)
SGD = optax.sgd(RATE)


def make(g_tx=SGD, d_tx=SGD, with_ema=False, **options):
    """A tiny update with SGD, and a fresh state."""
    update = Update(GENERATOR, DISCRIMINATOR, g_tx, d_tx, latent=LATENT, **options)
    init = jax.jit(lambda key: init_state(key, GENERATOR, DISCRIMINATOR, g_tx, d_tx, ema=with_ema))
    return update, init(jax.random.key(0))


@functools.cache
def batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (BATCH, SIZE, SIZE, CHANNELS), np.uint8), rng.integers(0, 5, BATCH).astype(np.int32)


def run(update, state, key=7):
    return jax.jit(update)(state, *batch(), jax.random.key(key))


def assert_close(a, b, tolerance=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        finite = np.abs(y)[np.isfinite(y)]
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, finite.max(initial=0)))


# -- Losses


def log_sigmoid(x):
    """float64, by the definition."""
    return -np.logaddexp(0, -np.asarray(x, np.float64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_losses_are_the_formulas(smoothing):
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(0, 5, 100).astype(np.float32) for _ in range(2))
    expected = (
        -((1 - smoothing) * log_sigmoid(real) + smoothing * log_sigmoid(-real)).mean() - log_sigmoid(-fake).mean()
    )
    np.testing.assert_allclose(losses.discriminator_bce(real, fake, smoothing), expected, rtol=2e-6)
    np.testing.assert_allclose(losses.generator_bce(fake), -log_sigmoid(fake).mean(), rtol=2e-6)


def test_losses_are_finite_far_out_and_float32():
    logits = jnp.array([-1e4, 1e4, 0.0], jnp.bfloat16)
    for loss in (losses.discriminator_bce(logits, logits, 0.1), losses.generator_bce(logits)):
        assert loss.dtype == jnp.float32 and np.isfinite(loss)


def test_smoothing_puts_the_optimum_at_its_target():
    """D's best answer to a real image is 1 - e."""
    gradient = jax.grad(lambda real: losses.discriminator_bce(real, jnp.zeros(1), 0.1))
    best = jnp.log(jnp.array([0.9 / 0.1]))
    assert abs(gradient(best)[0]) < 1e-6 and gradient(best + 1)[0] > 0 > gradient(best - 1)[0]


def test_accuracy_is_of_images_or_where_logits_have_no_zero_of_pairs():
    real, fake = jnp.array([3.0, 5.0, 2.0, 4.0]), jnp.array([1.0, 6.0, 1.5, -1.0])
    assert float(_accuracy(real, fake, border=True)) == (4 + 1) / 8
    assert float(_accuracy(real, fake, border=False)) == 3 / 4
    assert [name for name, loss in losses.LOSSES.items() if not loss.border] == ["relativistic", "wasserstein"]


# -- The update


def reference(update, state, images, grades, key):
    """The same in the plainest way: G forward twice, each gradient by its own jax.grad, D's fakes cut off by hand."""
    z_key, flip_key, *drop = jax.random.split(key, 5)
    z = jax.random.normal(z_key, (len(images), update.latent))
    real = jnp.asarray(images, jnp.float32) / 127.5 - 1
    fake_of = lambda params: update.generator.train(params, state.g.stats, z, grades)
    score = lambda params, stats, x, i: update.discriminator.train(
        params, stats, x, grades, rngs=nnx.Rngs(dropout=drop[i])
    )
    fake, g_stats = fake_of(state.g.params)
    fake = jax.lax.stop_gradient(fake)

    def d_loss(params):
        on_real, stats = score(params, state.d.stats, real, 0)
        on_fake, stats = score(params, stats, fake, 1)
        bce = optax.sigmoid_binary_cross_entropy
        return bce(on_real, jnp.full(len(images), 1 - update.smoothing)).mean() + bce(
            on_fake, jnp.zeros(len(images))
        ).mean(), (on_real, on_fake, stats)

    (loss_d, (on_real, on_fake, d_stats)), d_grads = jax.value_and_grad(d_loss, has_aux=True)(state.d.params)
    updates, d_opt = update.d_tx.update(d_grads, state.d.opt, state.d.params)
    d_params = optax.apply_updates(state.d.params, updates)

    def g_loss(params):
        logits, stats = score(d_params, d_stats, fake_of(params)[0], 2)
        return optax.sigmoid_binary_cross_entropy(logits, jnp.ones(len(images))).mean(), (logits, stats)

    (loss_g, (on_fake_after, d_stats)), g_grads = jax.value_and_grad(g_loss, has_aux=True)(state.g.params)
    updates, g_opt = update.g_tx.update(g_grads, state.g.opt, state.g.params)
    sigmoid = lambda x: 1 / (1 + jnp.exp(-x))
    norm = lambda tree: jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))
    metrics = {
        "loss_d": loss_d,
        "loss_g": loss_g,
        "d_real": sigmoid(on_real).mean(),
        "d_fake_before": sigmoid(on_fake).mean(),
        "d_fake_after": sigmoid(on_fake_after).mean(),
        "d_accuracy": jnp.concatenate([sigmoid(on_real) > 0.5, sigmoid(on_fake) <= 0.5]).mean(),
        "grad_norm_d": norm(d_grads),
        "grad_norm_g": norm(g_grads),
    }
    g = dataclasses.replace(state.g, params=optax.apply_updates(state.g.params, updates), stats=g_stats, opt=g_opt)
    return dataclasses.replace(
        state, step=state.step + 1, g=g, d=dataclasses.replace(state.d, params=d_params, stats=d_stats, opt=d_opt)
    ), metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_update_is_the_straightforward_one(smoothing):
    """Parameters, batch statistics of three passes through D, and every metric, over two steps, with dropout on."""
    update, state = make(smoothing=smoothing)
    plain = jax.jit(functools.partial(reference, update))
    for key in (7, 8):
        ours, metrics = run(update, state, key)
        theirs, expected = plain(state, *batch(), jax.random.key(key))
        assert metrics.keys() == expected.keys()
        assert_close(metrics, expected)
        assert_close(ours, theirs)
        state = ours
    assert int(state.step) == 2


def test_the_generator_descends_against_the_updated_discriminator():
    """With D's learning rate at 0 the generator's update is another one."""
    frozen, state = make(d_tx=optax.sgd(0.0))
    learning, _ = make(d_tx=optax.sgd(0.5))
    (a, before), (b, after) = run(frozen, state), run(learning, state)
    assert_same(a.d.params, state.d.params)
    assert float(before["loss_d"]) == float(after["loss_d"]) and float(before["d_fake_before"]) == float(
        after["d_fake_before"]
    )
    assert abs(float(before["loss_g"]) - float(after["loss_g"])) > 1e-3
    assert not np.allclose(a.g.params["image"]["kernel"], b.g.params["image"]["kernel"], atol=1e-6)


def test_batch_statistics_pass_through_real_fake_and_fake_again():
    """D's statistics after a step are momentum's answer to three batches, by hand; D does not learn in between."""
    update, state = make(d_tx=optax.sgd(0.0))
    after, _ = run(update, state)
    images, grades = batch()
    z = jax.random.normal(jax.random.split(jax.random.key(7), 5)[0], (BATCH, LATENT))
    fake, _ = update.generator.train(state.g.params, state.g.stats, z, grades)
    d = jax.tree.map(np.asarray, state.d.params)

    def hidden(x):
        return (
            np.concatenate([np.asarray(x).reshape(BATCH, -1), d["embed"]["embedding"][grades]], 1)
            @ d["hidden"]["kernel"]
            + d["hidden"]["bias"]
        )

    mean, var = np.zeros(8), np.ones(8)
    for x in (images / 127.5 - 1, fake, fake):
        mean, var = 0.9 * mean + 0.1 * hidden(x).mean(0), 0.9 * var + 0.1 * hidden(x).var(0)
    np.testing.assert_allclose(after.d.stats["norm"]["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(after.d.stats["norm"]["var"], var, rtol=1e-5)


def test_a_step_is_a_function_of_its_key():
    update, state = make()
    assert_same(run(update, state, 3), run(update, state, 3))
    assert not np.array_equal(
        run(update, state, 3)[0].g.params["image"]["kernel"], run(update, state, 4)[0].g.params["image"]["kernel"]
    )


# -- Options


def test_flip_mirrors_real_images_alone_about_half_of_them():
    """Seen through networks that hand their images out."""

    class Echo:
        def train(self, params, stats, x, grades, rngs=None):
            if rngs is None:  # the generator
                image = jnp.arange(SIZE * SIZE * CHANNELS, dtype=jnp.float32).reshape(SIZE, SIZE, CHANNELS) / 200
                return jnp.tile(image, (len(x), 1, 1, 1)) + params["w"], stats
            return x.mean((1, 2, 3)) + params["w"], {"seen": stats["seen"] + (x,)}

    _, state = make()
    images, grades = batch()
    seen = {}
    for flip in (False, True):
        update = Update(Echo(), Echo(), optax.sgd(0.0), optax.sgd(0.0), latent=LATENT, flip=flip)
        start = dataclasses.replace(
            state,
            g=dataclasses.replace(state.g, params={"w": 0.0}, stats={}, opt=optax.sgd(0.0).init({"w": 0.0})),
            d=dataclasses.replace(state.d, params={"w": 0.0}, stats={"seen": ()}, opt=optax.sgd(0.0).init({"w": 0.0})),
        )
        many = np.tile(images, (25, 1, 1, 1))
        seen[flip] = update(start, many, np.tile(grades, 25), jax.random.key(0))[0].d.stats["seen"]
    (real, *fakes), (flipped, *fakes_when_flipping) = seen[False], seen[True]
    assert_same(fakes, fakes_when_flipping)
    as_is = (flipped == real).all((1, 2, 3))
    mirrored = (flipped == real[:, :, ::-1]).all((1, 2, 3))
    assert (as_is ^ mirrored).all() and 70 <= mirrored.sum() <= 130


def test_clipping_bounds_the_update():
    clip = lambda norm: optax.chain(optax.clip_by_global_norm(norm), optax.sgd(1.0))
    update, state = make(g_tx=clip(0.01), d_tx=clip(0.02))
    after, metrics = run(update, state)
    for network, norm, name in (("g", 0.01, "grad_norm_g"), ("d", 0.02, "grad_norm_d")):
        moved = jax.tree.map(lambda a, b: a - b, getattr(after, network).params, getattr(state, network).params)
        assert float(metrics[name]) > norm  # what is logged is the gradient's own
        np.testing.assert_allclose(optax.global_norm(moved), norm, rtol=1e-3)


def test_ema_halves_in_its_half_life():
    factor = ema.decay(batch_size=32, half_life_kimg=3.2)
    average, late = jnp.float32(1), 10_000_000  # past the cap
    for step in range(100):  # 100 x 32 images
        average = ema.update(average, jnp.float32(0), factor, jnp.int32(late + step))
    np.testing.assert_allclose(average, 0.5, rtol=1e-4)


def test_a_young_ema_forgets_faster():
    """The factor at step k is at most (1 + k) / (10 + k)."""
    for done in (0, 5, 90):
        kept = ema.update(jnp.float32(1), jnp.float32(0), 0.999999, jnp.int32(done))
        np.testing.assert_allclose(kept, (1 + done) / (10 + done), rtol=1e-5)
    np.testing.assert_allclose(ema.update(jnp.float32(1), jnp.float32(0), 0.9, jnp.int32(1000)), 0.9, rtol=1e-6)
    np.testing.assert_allclose(
        ema.update(jnp.float32(1), jnp.float32(0), 0.9, None), 0.9, rtol=1e-6
    )  # one that is not young


def test_the_average_follows_the_generator_and_draws_the_samples():
    update, state = make(with_ema=True, ema_decay=0.99)
    assert_same(state.ema, state.g.params)
    after, _ = run(update, state)
    assert_close(
        after.ema, jax.tree.map(lambda a, p: 0.1 * a + 0.9 * p, state.g.params, after.g.params)
    )  # step 0: the cap, 1/10
    assert_same(generator_params(after), after.ema)
    without, plain = make()
    assert run(without, plain)[0].ema == {}
    assert_same(run(without, plain)[0].g, after.g)  # it changes nothing else
    assert_same(generator_params(plain), plain.g.params)


# -- uint8 <-> float


def test_uint8_to_float_and_back():
    every = np.arange(256, dtype=np.uint8)
    as_float = to_float(every)
    assert as_float.dtype == jnp.float32 and as_float[0] == -1 and as_float[-1] == 1
    assert (np.asarray(to_uint8(as_float)) == every).all()
    assert (np.asarray(jax.jit(lambda x: to_uint8(to_float(x)))(every)) == every).all()
    assert to_uint8(jnp.array([-3.0, 3.0])).tolist() == [0, 255]


def test_updates_are_half_as_large_for_each_restart():
    """Exactly: the power of two moves no digit, so that what SGD adds is halved and halved again."""
    update, state = make()
    many = [run(update, dataclasses.replace(state, restarts=jnp.int32(count)))[0] for count in range(4)]
    assert [int(after.restarts) for after in many] == [0, 1, 2, 3]
    moved = [[np.asarray(a) - b for a, b in zip(*map(jax.tree.leaves, (one.d.params, state.d.params)))] for one in many]
    for count, some in enumerate(moved):
        for x, whole in zip(some, moved[0], strict=True):
            np.testing.assert_allclose(x, whole / 2**count, atol=2e-7)
