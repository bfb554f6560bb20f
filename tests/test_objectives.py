"""Updates with other losses and with penalties: against the plainest form of the same, and what is taken when."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import LATENT, LOSSES_ON, SIZE, TINY, assert_same, changed, make_config
from flax import nnx

from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, build_networks, convolution
from idrid_jax.models.functional import functional
from idrid_jax.training import build, losses, saved
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.loop import train
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import NetworkState, TrainState, init_state
from idrid_jax.training.update import Update

BATCH = 8
SGD = optax.sgd(0.05)
GENERATOR, DISCRIMINATOR = (
    functional(lambda rngs, make=make: make(rngs=rngs)) for make in (TINY["tiny"].generator, TINY["tiny"].discriminator)
)
def make(**options):
    """A tiny update with SGD, and a fresh state."""
    update = Update(GENERATOR, DISCRIMINATOR, SGD, SGD, latent=LATENT, **options)
    lecam = bool(update.weights.lecam)
    return update, init_state(jax.random.key(0), GENERATOR, DISCRIMINATOR, SGD, SGD, ema=False, lecam=lecam)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8), rng.integers(0, 5, BATCH).astype(np.int32)


def run(update, state, key=7):
    return jax.jit(update)(state, *batch(), jax.random.key(key))


def assert_close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        finite = np.abs(y)[np.isfinite(y)]
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, finite.max(initial=0)))


def reference(update, step, state, images, grades, key):
    """Each term by its own passes, each image gradient by its own jax.grad; nothing is shared."""
    z_key, _, *drop = jax.random.split(key, 5)
    share_key, mixed_drop, again_drop = jax.random.split(jax.random.fold_in(key, 5), 3)
    z, real = jax.random.normal(z_key, (BATCH, LATENT)), jnp.asarray(images, jnp.float32) / 127.5 - 1
    fake, _ = GENERATOR.train(state.g.params, state.g.stats, z, grades)
    weights, loss = update.weights, losses.LOSSES[update.loss]
    due = step % weights.penalty_every == 0

    def module(params):
        return nnx.merge(DISCRIMINATOR.train_graph, params, state.d.stats)

    score = lambda params, x, key: module(params)(x, grades, rngs=nnx.Rngs(dropout=key))
    slopes = lambda params, x, key: jax.grad(lambda x: score(params, x, key).sum())(x)
    square = lambda slopes: (slopes**2).sum((1, 2, 3))

    def d_loss(params):
        on_real, on_fake = score(params, real, drop[0]), score(params, fake, drop[1])
        total = loss.discriminator(on_real, on_fake)
        if due:
            e = jax.random.uniform(share_key, (BATCH,))[:, None, None, None]
            mixed = slopes(params, e * real + (1 - e) * fake, mixed_drop)
            penalty = weights.r1 / 2 * square(slopes(params, real, drop[0])).mean()
            penalty += weights.r2 / 2 * square(slopes(params, fake, drop[1])).mean()
            penalty += weights.gradient_penalty * ((jnp.sqrt(square(mixed)) - 1) ** 2).mean()
            total += weights.penalty_every * penalty
        if weights.lecam:
            before = 1 - 0.99**step  # sum of the weights of the batches so far
            average = lambda name, x: (
                (0.99 * before * state.lecam[name] + 0.01 * jax.lax.stop_gradient(x).mean()) / (0.99 * before + 0.01)
            )
            averages = {"real": average("real", on_real), "fake": average("fake", on_fake)}
            total += weights.lecam * (jnp.maximum(0, on_real - averages["fake"]) ** 2).mean()
            total += weights.lecam * (jnp.maximum(0, averages["real"] - on_fake) ** 2).mean()
        return total, averages if weights.lecam else {}

    moved = lambda params, gradients: jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
    d_gradients, averages = jax.grad(d_loss, has_aux=True)(state.d.params)
    d_params = moved(state.d.params, d_gradients)

    def g_loss(params):
        fake, _ = GENERATOR.train(params, state.g.stats, z, grades)
        on_fake, on_real = score(d_params, fake, drop[2]), score(d_params, real, again_drop)
        total = loss.generator(on_fake, on_real) if loss.pairs else loss.generator(on_fake)
        of = lambda x, key: module(d_params).features(x, grades, rngs=nnx.Rngs(dropout=key)).mean(0)
        return total + weights.feature_matching * ((of(real, again_drop) - of(fake, drop[2])) ** 2).sum()

    return moved(state.g.params, jax.grad(g_loss)(state.g.params)), d_params, averages


EVERYTHING = Weights(r1=0.7, r2=0.4, gradient_penalty=0.6, penalty_every=2, lecam=0.5, feature_matching=0.8)
UPDATES = {
    "hinge": ("hinge", Weights()),
    "relativistic, r1 and r2": ("relativistic", Weights(r1=0.7, r2=0.4)),
    "wasserstein, gradient penalty": ("wasserstein", Weights(gradient_penalty=3.0)),
    "bce, r2": ("bce", Weights(r2=0.7)),
    "everything": ("relativistic", EVERYTHING),
}


@pytest.mark.parametrize("name", UPDATES)
def test_the_update_is_the_plain_one(name):
    """Parameters of both networks over two steps, of which a penalty every second one meets one; with BatchNorm and
    dropout."""
    loss, weights = UPDATES[name]
    update, state = make(loss=loss, weights=weights)
    with jax.default_matmul_precision("highest"):
        for key in (7, 8):
            plain = jax.jit(functools.partial(reference, update, int(state.step)))
            g, d, averages = plain(state, *batch(), jax.random.key(key))
            state, metrics = run(update, state, key)
            assert_close(state.g.params, g)
            assert_close(state.d.params, d)
            assert_close(state.lecam, averages)
    on = {field.name for field in dataclasses.fields(Weights) if getattr(weights, field.name)} - {"penalty_every"}
    assert on == metrics.keys() & {"r1", "r2", "gradient_penalty", "lecam", "feature_matching"}
    assert all(value.dtype == jnp.float32 and np.isfinite(value) for value in metrics.values())


def test_lazy_penalties_are_taken_at_every_third_update_three_times_as_much():
    update, state = make(weights=Weights(r1=0.5, gradient_penalty=0.5, penalty_every=3))
    without, thrice = (make(weights=weights)[0] for weights in (Weights(), Weights(r1=1.5, gradient_penalty=1.5)))
    update, without, thrice = map(jax.jit, (update, without, thrice))
    for step in range(4):
        at = dataclasses.replace(state, step=jnp.int32(step))
        (after, metrics), (plain, _), (strong, full) = (
            one(at, *batch(), jax.random.key(7)) for one in (update, without, thrice)
        )
        assert_close(after.d.params, (plain if step % 3 else strong).d.params, 1e-6)
        factor = 0 if step % 3 else 3
        for name in ("r1", "gradient_penalty"):
            assert metrics[name] == pytest.approx(factor * float(full[name]), rel=1e-5)
        assert metrics["loss_d"] == pytest.approx(float(full["loss_d"]), rel=1e-5)  # the adversarial part alone


def test_r1_flattens_the_discriminator():
    """A strong penalty, many updates: D's slope on real images goes down, and without it up."""
    slopes = {}
    for r1 in (0.0, 30.0):
        update, state = make(weights=Weights(r1=r1 or 1e-12))
        step = jax.jit(update)
        for i in range(40):
            state, metrics = step(state, *batch(), jax.random.key(i))
        slopes[r1] = float(metrics["r1"])
    assert slopes[30.0] < slopes[0.0] / 3


def test_penalties_know_no_statistics():
    """The pass between real and fake images leaves no trace in BatchNorm's running statistics."""
    (penalised, state), (plain, _) = make(weights=Weights(gradient_penalty=1.0, r1=1.0, r2=1.0)), make()
    frozen = dict(d_tx=optax.sgd(0.0))
    after, before = (run(dataclasses.replace(one, **frozen), state)[0] for one in (penalised, plain))
    assert_close(after.d.stats, before.d.stats, 1e-6)


# -- Through the networks' convolutions


@pytest.mark.parametrize("network", ["cgan32", "dcgan28", "dcgan64", "dcgan64 with remat"])
def test_penalties_of_the_networks_are_those_of_plain_convolutions(network):
    """Gradient of R1 in D's parameters, in float64, by the lowering of this platform and by lax's own."""
    name, _, remat = network.partition(" with ")
    made = NETWORKS[name]
    narrow = dict(width=8, remat=bool(remat)) if name == "dcgan64" else {}
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        d = functional(lambda rngs: made.discriminator(dtype=jnp.float64, rngs=rngs, **narrow))
        double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
        params, stats = double(d.init(jax.random.key(0)))
        x = jnp.asarray(rng.uniform(-1, 1, (3, made.size, made.size, made.channels)))

        def r1(params):
            score = lambda x: d.train(params, stats, x, jnp.arange(3), rngs=nnx.Rngs(dropout=1))[0].sum()
            return (jax.grad(score)(x) ** 2).sum()

        ours = jax.jit(jax.grad(lambda params: r1(params)))(params)
        with convolution.lowering("native"):
            theirs = jax.jit(jax.grad(lambda params: r1(params)))(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(np.abs(b).max(), 1e-12))
    assert max(np.abs(a).max() for a in jax.tree.leaves(ours)) > 0


@pytest.mark.parametrize("name", ["cgan32", "dcgan28", "dcgan64"])
def test_logits_are_the_judgement_of_the_features(name):
    made = NETWORKS[name]
    d = functional(lambda rngs: made.discriminator(rngs=rngs, **(dict(width=8) if name == "dcgan64" else {})))
    params, stats = d.init(jax.random.key(0))
    x, grades = jnp.ones((2, made.size, made.size, made.channels)) * 0.3, jnp.array([1, 2])
    key = lambda: nnx.Rngs(dropout=3)
    (logits, features), after = d.train_features(params, stats, x, grades, rngs=key())
    assert_same((logits, after), d.train(params, stats, x, grades, rngs=key()))
    assert features.shape[0] == 2 and features.size > 100 and logits.shape == (2,)


# -- Configuration, runs and their checkpoints


def test_runs_log_what_is_on_and_keep_lecam_s_averages(config, tmp_path):
    state = train(changed(config, total_kimg=0.032, **LOSSES_ON), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert all(row.keys() >= {"r1", "r2", "gradient_penalty", "lecam", "feature_matching"} for row in rows)
    _, found = saved.read_run(tmp_path)
    assert_same(found, state)
    assert all(np.isfinite(x) and x != 0 for x in state.lecam.values()) and len(state.lecam) == 2
    with pytest.raises(UserError, match="config.loss.lecam: 0.1 -> 0.0"):
        train(changed(config, **(LOSSES_ON | dict(loss__lecam=0.0))), tmp_path)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OlderState:
    """A TrainState as it was before LeCam."""

    step: jax.Array
    g: NetworkState
    d: NetworkState
    ema: dict
    best: jax.Array


def test_runs_from_before_the_losses_go_on(config, tmp_path):
    """Their record has none of the fields, and their checkpoints no place for averages."""
    train(changed(config, total_kimg=0.032), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["loss"] = {"label_smoothing": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(record))
    _, state = saved.read_run(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, OlderState(*(getattr(state, field.name) for field in dataclasses.fields(OlderState))))
    _, again = saved.read_run(tmp_path)
    assert_same(again, state)
    assert again.lecam == {} and not any("lecam" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(again))
    assert int(train(changed(config, total_kimg=0.048), tmp_path).step) == 6


def test_an_update_of_the_default_losses_has_no_trace_of_the_others():
    """The program of a run without them is that of before: as many passes, no branch, no new number."""
    update, state = make()
    text = jax.jit(update).lower(state, *batch(), jax.random.key(0)).compile().as_text()
    assert "conditional" not in text
    older = OlderState(state.step, state.g, state.d, state.ema, state.best)
    assert isinstance(state, TrainState) and len(jax.tree.leaves(state)) == len(jax.tree.leaves(older)) + 1  # restarts
    config = make_config("", "cgan32")
    assert build.make_update(config, *build_networks(config))[0].weights == Weights()
