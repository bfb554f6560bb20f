"""Each loss and penalty against its formula in NumPy float64, and its gradients against PyTorch's autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrid_jax.training import losses

RNG = np.random.default_rng(0)
REAL, FAKE = (RNG.normal(0, 3, 64) for _ in range(2))
softplus = lambda x: np.logaddexp(0, x)
relu = lambda x: np.maximum(0, x)

# name -> D's and G's loss of logits x of real and y of fake images
FORMULAS = {
    "bce": (lambda x, y: softplus(-x).mean() + softplus(y).mean(), lambda x, y: softplus(-y).mean()),
    "hinge": (lambda x, y: relu(1 - x).mean() + relu(1 + y).mean(), lambda x, y: -y.mean()),
    "relativistic": (lambda x, y: softplus(-(x - y)).mean(), lambda x, y: softplus(-(y - x)).mean()),
    "wasserstein": (lambda x, y: y.mean() - x.mean(), lambda x, y: -y.mean()),
}


def generator(name, real, fake):
    loss = losses.LOSSES[name]
    return loss.generator(fake, real) if loss.paired else loss.generator(fake)


def test_every_loss_has_a_formula_here():
    assert FORMULAS.keys() == losses.LOSSES.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_the_formulas(name):
    of_d, of_g = FORMULAS[name]
    real, fake = REAL.astype(np.float32), FAKE.astype(np.float32)
    np.testing.assert_allclose(losses.LOSSES[name].discriminator(real, fake), of_d(REAL, FAKE), rtol=2e-6)
    np.testing.assert_allclose(generator(name, real, fake), of_g(REAL, FAKE), rtol=2e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_pull_the_right_way(name):
    """By finite differences of the formulas; D wants real ones higher and fake ones lower, G the opposite."""
    of_d, of_g = FORMULAS[name]
    real, fake = REAL[:5], FAKE[:5]
    to_real, to_fake = jax.grad(lambda *logits: losses.LOSSES[name].discriminator(*logits), (0, 1))(
        jnp.float32(real), jnp.float32(fake)
    )
    of_fake = jax.grad(lambda fake: generator(name, jnp.float32(real), fake))(jnp.float32(fake))
    assert (to_real <= 0).all() and (to_fake >= 0).all() and (of_fake <= 0).all() and (of_fake < 0).any()
    step = 1e-5
    for i in range(5):
        at = step * (np.arange(5) == i)
        for gradient, formula in (
            (to_real, lambda s: of_d(real + s, fake)),
            (to_fake, lambda s: of_d(real, fake + s)),
            (of_fake, lambda s: of_g(real, fake + s)),
        ):
            np.testing.assert_allclose(gradient[i], (formula(at) - formula(-at)) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_finite_far_out_and_float32(name):
    logits = jnp.array([-1e4, 1e4, 0.0], jnp.bfloat16)
    for loss in (losses.LOSSES[name].discriminator(logits, logits[::-1]), generator(name, logits, logits)):
        assert loss.dtype == jnp.float32 and np.isfinite(loss)


def test_pairs_are_paired():
    """Shuffling one side alone changes the relativistic loss and no other."""
    for name, loss in losses.LOSSES.items():
        changed = loss.discriminator(REAL, FAKE[::-1]) - loss.discriminator(REAL, FAKE)
        assert (abs(changed) > 1e-3) == (name == "relativistic")


# -- Penalties


def test_penalties_are_the_formulas():
    gradients = RNG.normal(0, 0.2, (6, 4, 4, 3))
    norms = np.sqrt((gradients**2).sum((1, 2, 3)))
    np.testing.assert_allclose(losses.zero_centered_penalty(gradients), (norms**2).mean(), rtol=2e-6)
    np.testing.assert_allclose(losses.one_centered_penalty(gradients), ((norms - 1) ** 2).mean(), rtol=2e-6)
    assert losses.zero_centered_penalty(jnp.bfloat16(gradients)).dtype == jnp.float32


def test_penalties_of_a_flat_discriminator_have_finite_gradients():
    for penalty, value in ((losses.zero_centered_penalty, 0), (losses.one_centered_penalty, 1)):
        found, gradient = jax.value_and_grad(penalty)(jnp.zeros((2, 3)))
        assert found == pytest.approx(value, abs=1e-5) and (gradient == 0).all()


def test_between_goes_from_fake_to_real():
    real, fake = RNG.normal(size=(2, 3, 4, 4, 1))
    mixed = losses.interpolate(jnp.asarray(real), jnp.asarray(fake), jnp.array([0.0, 1.0, 0.25]))
    np.testing.assert_allclose(mixed, [fake[0], real[1], 0.25 * real[2] + 0.75 * fake[2]], atol=1e-6)


def small_discriminator(w1, w2, x, matrix, tanh):
    """Twice differentiable, and not linear in x."""
    return matrix(tanh(matrix(x.reshape(x.shape[0], -1), w1)), w2)[:, 0]


@pytest.mark.parametrize("penalty", ["zero_centered_penalty", "one_centered_penalty"])
def test_double_backward_is_pytorch_s(penalty):
    """The gradient in D's parameters of a penalty on its gradient in the images."""
    torch = pytest.importorskip("torch")
    w1, w2, x = RNG.normal(0, 0.3, (12, 8)), RNG.normal(0, 0.3, (8, 1)), RNG.normal(size=(5, 2, 2, 3))

    def ours(w1, w2, x):
        gradients = jax.grad(lambda x: small_discriminator(w1, w2, x, jnp.matmul, jnp.tanh).sum())(x)
        return getattr(losses, penalty)(gradients)

    theirs = [torch.tensor(a, requires_grad=True) for a in (w1, w2, x)]
    (gradients,) = torch.autograd.grad(
        small_discriminator(*theirs, torch.matmul, torch.tanh).sum(), theirs[2], create_graph=True
    )
    norms = gradients.flatten(1).norm(dim=1)
    value = (norms**2).mean() if penalty == "zero_centered_penalty" else ((norms - 1) ** 2).mean()
    value.backward()
    with jax.default_matmul_precision("highest"):
        found, slopes = jax.value_and_grad(ours, (0, 1))(*map(jnp.float32, (w1, w2, x)))
    np.testing.assert_allclose(found, value.item(), rtol=1e-5)
    for slope, peer in zip(slopes, theirs):
        np.testing.assert_allclose(slope, peer.grad.numpy(), atol=1e-5 * np.abs(peer.grad.numpy()).max())


# -- LeCam


def test_lecam_is_its_formula():
    averages = {"real": jnp.float32(0.7), "fake": jnp.float32(-0.4)}
    expected = (relu(REAL + 0.4) ** 2).mean() + (relu(0.7 - FAKE) ** 2).mean()
    np.testing.assert_allclose(losses.lecam_penalty(REAL, FAKE, averages), expected, rtol=2e-6)


def test_lecam_is_of_each_logit_not_of_their_mean():
    averages = {"real": jnp.float32(0), "fake": jnp.float32(0)}
    spread = jnp.array([-1.0, 1.0])
    assert losses.lecam_penalty(spread, spread, averages) == pytest.approx(1.0)  # of the means it would be 0


def test_lecam_averages_are_weighted_means_of_what_was_seen():
    """0.99^age over their sum, from whatever they began with; constant to D."""
    batches = RNG.normal(1, 2, (7, 2, 5))
    averages = {"real": jnp.float32(10), "fake": jnp.float32(-10)}
    for step, (real, fake) in enumerate(batches):
        averages = losses.update_lecam_averages(averages, real, fake, jnp.int32(step))
    weights = 0.99 ** np.arange(7)[::-1]
    expected = (batches.mean(-1) * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose([averages["real"], averages["fake"]], expected, atol=1e-5)
    late = losses.update_lecam_averages(
        {"real": jnp.float32(1), "fake": jnp.float32(1)}, REAL, FAKE, jnp.int32(100_000)
    )
    np.testing.assert_allclose(late["real"], 0.99 + 0.01 * REAL.mean(), rtol=1e-5)
    slope = jax.grad(lambda x: losses.update_lecam_averages(averages, x, x, jnp.int32(3))["real"])(jnp.ones(4))
    assert (slope == 0).all()


# -- Feature matching


def test_feature_matching_is_its_formula():
    real, fake = RNG.normal(size=(6, 2, 2, 5)), RNG.normal(0.3, 2, (4, 2, 2, 5))
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    np.testing.assert_allclose(losses.feature_matching(real, fake), expected, rtol=2e-6)
    assert losses.feature_matching(real, real[::-1]) == pytest.approx(0, abs=1e-10)
    assert losses.feature_matching(jnp.bfloat16(real), jnp.bfloat16(fake)).dtype == jnp.float32
