"""Adversarial losses and the terms added to them; pure functions of logits, gradients and features.

D and G are the discriminator and the generator, x real images, z latents. D(.) are logits; sigmoid(D(.)) is the
probability of being real. Losses take logits [B] of any floating dtype and return a float32 scalar; E is the mean over
the batch. `update.py` evaluates them.

`README.md`, Losses, says how to add a loss or a term.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from idrid_jax.config_checks import PENALTIES

LECAM_DECAY = 0.99  # of the moving averages, per update: Tseng et al. 2021
MIN_SQUARED_NORM = 1e-12  # the square root has no derivative at 0


# -- Adversarial losses


def discriminator_bce(real: jax.Array, fake: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-E[(1 - e) log s(D(x)) + e log(1 - s(D(x)))] - E[log(1 - s(D(G(z))))], s the sigmoid: binary cross-entropy.

    Goodfellow et al. 2014, equation 1, with one-sided label smoothing e of Salimans et al. 2016, section 3.4. It is the
    sum of both halves, not their mean, as the thesis's Loss_D. With R1 it is the non-saturating GAN that Mescheder et
    al. 2018 ("Which Training Methods for GANs do actually Converge?") prove to converge.
    """
    real, fake = _float32(real, fake)
    # -log sigmoid(s) = softplus(-s) and -log(1 - sigmoid(s)) = softplus(s)
    real_loss = (1 - smoothing) * jax.nn.softplus(-real) + smoothing * jax.nn.softplus(real)
    return real_loss.mean() + jax.nn.softplus(fake).mean()


def generator_bce(fake: jax.Array) -> jax.Array:
    """-E[log s(D(G(z)))], the non-saturating loss: Goodfellow et al. 2014, section 3."""
    return jax.nn.softplus(-fake.astype(jnp.float32)).mean()


def discriminator_hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]: Lim and Ye 2017; Miyato et al. 2018, equation 16."""
    real, fake = _float32(real, fake)
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def generator_hinge(fake: jax.Array) -> jax.Array:
    """-E[D(G(z))]: Miyato et al. 2018, equation 17."""
    return -fake.astype(jnp.float32).mean()


def discriminator_relativistic(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[softplus(-(D(x) - D(G(z))))], image i of both batches being a pair: the relativistic pairing loss.

    Jolicoeur-Martineau 2019 ("The relativistic discriminator"), section 4. With R1 and R2 it is R3GAN: Huang et al.
    2024, section 2.
    """
    real, fake = _float32(real, fake)
    return jax.nn.softplus(fake - real).mean()


def generator_relativistic(fake: jax.Array, real: jax.Array) -> jax.Array:
    """E[softplus(-(D(G(z)) - D(x)))]: `discriminator_relativistic` with real and fake exchanged."""
    return discriminator_relativistic(fake, real)


def discriminator_wasserstein(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[D(G(z))] - E[D(x)]: Arjovsky et al. 2017, algorithm 1, negated to be minimized.

    D must be kept smooth, by `one_centered_penalty` (WGAN-GP) or `zero_centered_penalty`.
    """
    real, fake = _float32(real, fake)
    return fake.mean() - real.mean()


def generator_wasserstein(fake: jax.Array) -> jax.Array:
    """-E[D(G(z))]: Arjovsky et al. 2017, algorithm 1."""
    return -fake.astype(jnp.float32).mean()


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """The losses of both networks.

    Attributes:
      discriminator: (real logits, fake logits) -> loss.
      generator: fake logits -> loss; (fake logits, real logits) -> loss if `paired`.
      paired: the loss compares real image i with fake image i: it is -log of the probability of ranking them right.
      zero_is_boundary: a logit of 0 means a probability of 50 %. Otherwise only differences of logits have a meaning.
    """

    discriminator: Callable[..., jax.Array]
    generator: Callable[..., jax.Array]
    paired: bool = False
    zero_is_boundary: bool = True


LOSSES = {
    "bce": AdversarialLoss(discriminator_bce, generator_bce),
    "hinge": AdversarialLoss(discriminator_hinge, generator_hinge),
    "relativistic": AdversarialLoss(
        discriminator_relativistic, generator_relativistic, paired=True, zero_is_boundary=False
    ),
    "wasserstein": AdversarialLoss(discriminator_wasserstein, generator_wasserstein, zero_is_boundary=False),
}


# -- Gradient penalties: functions of D's gradients with respect to images, [B, ...] -> float32 []


def zero_centered_penalty(gradients: jax.Array) -> jax.Array:
    """E[|grad D|^2]: the R1 penalty is gamma / 2 times it on real images, R2 on fake ones.

    Mescheder et al. 2018, equations 9 and 10. Taken at every k-th update with k times the weight it is "lazy
    regularization": Karras et al. 2020 ("Analyzing and Improving the Image Quality of StyleGAN"), section 3.1.
    """
    return _squared_norms(gradients).mean()


def one_centered_penalty(gradients: jax.Array) -> jax.Array:
    """E[(|grad D| - 1)^2], at images between real and fake ones: Gulrajani et al. 2017, equation 3 (WGAN-GP)."""
    return ((jnp.sqrt(_squared_norms(gradients) + MIN_SQUARED_NORM) - 1) ** 2).mean()


def interpolate(real: jax.Array, fake: jax.Array, share: jax.Array) -> jax.Array:
    """e x + (1 - e) G(z) for images [B, H, W, C] and shares e in [0, 1], [B]: Gulrajani et al. 2017, algorithm 1."""
    share = share.reshape(-1, *[1] * (real.ndim - 1))
    return share * real + (1 - share) * fake


# -- LeCam regularization of D


def lecam_penalty(real: jax.Array, fake: jax.Array, averages: dict[str, jax.Array]) -> jax.Array:
    """E[max(0, D(x) - a_fake)^2] + E[max(0, a_real - D(G(z)))^2], a the moving averages of D's logits.

    For training on little data: Tseng et al. 2021 ("Regularizing Generative Adversarial Networks under Limited Data"),
    section 3, R_LC. max(0, .) is from the authors' code; their text has the squares alone. averages: "real" and
    "fake", float32 [].
    """
    real, fake = _float32(real, fake)
    above, below = jax.nn.relu(real - averages["fake"]), jax.nn.relu(averages["real"] - fake)
    return (above**2).mean() + (below**2).mean()


def update_lecam_averages(
    averages: dict[str, jax.Array], real: jax.Array, fake: jax.Array, step: jax.Array
) -> dict[str, jax.Array]:
    """Update the moving averages with this batch's mean logits, without a gradient: Tseng et al. 2021, section 3.

    step: int32 [], 0 at the first update. The averages are debiased as Adam's moments (Kingma and Ba 2015, section 3),
    so their initial values do not matter; so does the authors' code.
    """
    weight = (1 - LECAM_DECAY) / -jnp.expm1(math.log(LECAM_DECAY) * (step + 1))  # 1 - decay^(step + 1) loses digits
    means = {name: jax.lax.stop_gradient(x).astype(jnp.float32).mean() for name, x in (("real", real), ("fake", fake))}
    return {name: averages[name] + weight * (means[name] - averages[name]) for name in means}


# -- Feature matching of G


def feature_matching(real: jax.Array, fake: jax.Array) -> jax.Array:
    """|E f(x) - E f(G(z))|^2, f the features of D, [B, ...]: Salimans et al. 2016, section 3.1; the thesis, 4.3."""
    real, fake = _float32(real, fake)
    return ((real.mean(axis=0) - fake.mean(axis=0)) ** 2).sum()


# -- Weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the terms added to the adversarial losses; 0 turns a term off.

    Attributes:
      r1, r2: gamma of the zero-centered penalty on real and on fake images; half of it is the weight.
      gradient_penalty: weight of the one-centered penalty between real and fake images.
      penalty_every: updates between two of these three penalties, which are then this many times as strong.
      lecam: weight of `lecam_penalty`, at every update.
      feature_matching: weight of `feature_matching`, added to G's loss.
    """

    r1: float = 0.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    penalty_every: int = 1
    lecam: float = 0.0
    feature_matching: float = 0.0

    @property
    def penalties(self) -> tuple[str, ...]:
        """Names of the gradient penalties that are on."""
        return tuple(name for name in PENALTIES if getattr(self, name))

    def weighted_sum(self, terms: dict[str, jax.Array]) -> jax.Array:
        """Sum the terms by name, float32 [], each times its weight."""
        halved = {"r1": 0.5, "r2": 0.5}
        return sum(
            (halved.get(name, 1.0) * getattr(self, name) * term for name, term in terms.items()), start=jnp.float32(0)
        )


def _float32(*arrays):
    return [x.astype(jnp.float32) for x in arrays]


def _squared_norms(gradients):
    """Squared norm of each example's gradient, float32 [B]."""
    gradients = gradients.astype(jnp.float32)
    return (gradients**2).sum(axis=tuple(range(1, gradients.ndim)))
