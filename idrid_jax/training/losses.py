"""Adversarial losses on logits, and what is added to them; pure.

D and G are the networks, x real images, z latents; D(.) are logits, sigmoid(D(.)) the probability of being real. Losses
take logits [B] of any floating dtype and give a float32 scalar; an expectation E is the mean over the batch. What adds
the penalties, which take gradients of the logits in the images, under the configuration's weights, is `objectives`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

LECAM_DECAY = 0.99  # of the averages, per update: Tseng et al. 2021
LEAST_SQUARE = 1e-12  # the root of a squared norm has no slope at 0


# -- Adversarial losses


def discriminator_bce(real: jax.Array, fake: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-E[(1 - e) log s(D(x)) + e log(1 - s(D(x)))] - E[log(1 - s(D(G(z))))], s the sigmoid: binary cross-entropy.

    Goodfellow et al. 2014, equation 1; one-sided label smoothing e as Salimans et al. 2016, 3.4. The sum of both
    halves, not their mean: the thesis's Loss_D. With `r1` it is the non-saturating GAN that Mescheder et al. 2018
    ("Which Training Methods for GANs do actually Converge?") prove to converge.
    """
    real, fake = _wide(real, fake)
    # -log sigmoid(s) = softplus(-s) and -log(1 - sigmoid(s)) = softplus(s)
    on_real = (1 - smoothing) * jax.nn.softplus(-real) + smoothing * jax.nn.softplus(real)
    return on_real.mean() + jax.nn.softplus(fake).mean()


def generator_bce(fake: jax.Array) -> jax.Array:
    """-E[log s(D(G(z)))], the non-saturating form: Goodfellow et al. 2014, section 3."""
    return jax.nn.softplus(-fake.astype(jnp.float32)).mean()


def discriminator_hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]: Lim and Ye 2017 ("Geometric GAN"); Miyato et al. 2018, equation
    16."""
    real, fake = _wide(real, fake)
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def generator_hinge(fake: jax.Array) -> jax.Array:
    """-E[D(G(z))]: Miyato et al. 2018, equation 17."""
    return -fake.astype(jnp.float32).mean()


def discriminator_relativistic(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[softplus(-(D(x) - D(G(z))))], image i of both batches being a pair: RpGAN.

    Jolicoeur-Martineau 2019 ("The relativistic discriminator"), section 4; with `r1` and `r2`, R3GAN: Huang et al.
    2024, section 2.
    """
    real, fake = _wide(real, fake)
    return jax.nn.softplus(fake - real).mean()


def generator_relativistic(fake: jax.Array, real: jax.Array) -> jax.Array:
    """E[softplus(-(D(G(z)) - D(x)))]: `discriminator_relativistic` with the pairs turned round."""
    return discriminator_relativistic(fake, real)


def discriminator_wasserstein(real: jax.Array, fake: jax.Array) -> jax.Array:
    """E[D(G(z))] - E[D(x)]: Arjovsky et al. 2017, algorithm 1, with the sign of a loss. D must be kept smooth, by
    `one_centred` (WGAN-GP) or `zero_centred`."""
    real, fake = _wide(real, fake)
    return fake.mean() - real.mean()


def generator_wasserstein(fake: jax.Array) -> jax.Array:
    """-E[D(G(z))]: Arjovsky et al. 2017, algorithm 1."""
    return -fake.astype(jnp.float32).mean()


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """A pair of losses.

    Attributes:
      discriminator: logits of real and of fake images -> loss.
      generator: logits of fake images -> loss; with `pairs`, of fake and of real images.
      border: a logit of 0 is as likely real as fake; where not, logits say something beside each other only.
    """

    discriminator: Callable[..., jax.Array]
    generator: Callable[..., jax.Array]
    pairs: bool = False
    border: bool = True


LOSSES = {
    "bce": Adversarial(discriminator_bce, generator_bce),
    "hinge": Adversarial(discriminator_hinge, generator_hinge),
    "relativistic": Adversarial(discriminator_relativistic, generator_relativistic, pairs=True, border=False),
    "wasserstein": Adversarial(discriminator_wasserstein, generator_wasserstein, border=False),
}


# -- Penalties of the discriminator: of its gradients in images, [B, ...] -> float32 []


def zero_centred(gradients: jax.Array) -> jax.Array:
    """E[|grad D|^2]: R1 is gamma / 2 times it on real images, R2 on fake ones.

    Mescheder et al. 2018, equations 9 and 10. Every k-th update with k times the weight ("lazy"): Karras et al. 2020
    ("Analyzing and Improving the Image Quality of StyleGAN"), section 3.1.
    """
    return _squares(gradients).mean()


def one_centred(gradients: jax.Array) -> jax.Array:
    """E[(|grad D| - 1)^2], at images between real and fake ones: Gulrajani et al. 2017, equation 3 (WGAN-GP)."""
    return ((jnp.sqrt(_squares(gradients) + LEAST_SQUARE) - 1) ** 2).mean()


def between(real: jax.Array, fake: jax.Array, share: jax.Array) -> jax.Array:
    """e x + (1 - e) G(z), of images [B, H, W, C] and a share e in [0, 1] for each, [B]: Gulrajani et al. 2017,
    algorithm 1."""
    share = share.reshape(-1, *[1] * (real.ndim - 1))
    return share * real + (1 - share) * fake


def lecam(real: jax.Array, fake: jax.Array, averages: dict[str, jax.Array]) -> jax.Array:
    """E[max(0, D(x) - a_fake)^2] + E[max(0, a_real - D(G(z)))^2], a the averages of D's logits; for little data.

    Tseng et al. 2021 ("Regularizing Generative Adversarial Networks under Limited Data"), section 3, R_LC; max(0, .) is
    of the authors' code, their text has the squares alone. averages: "real" and "fake", float32 [].
    """
    real, fake = _wide(real, fake)
    above, below = jax.nn.relu(real - averages["fake"]), jax.nn.relu(averages["real"] - fake)
    return (above**2).mean() + (below**2).mean()


def lecam_averages(
    averages: dict[str, jax.Array], real: jax.Array, fake: jax.Array, step: jax.Array
) -> dict[str, jax.Array]:
    """The averages with this batch's mean logits in them, constant to D; step int32 [], 0 at the first update.

    Tseng et al. 2021, section 3. Young ones are the weighted means of what they saw, whatever `averages` began with (as
    Adam's: Kingma and Ba 2015, section 3; so the authors' code).
    """
    new = (1 - LECAM_DECAY) / -jnp.expm1(math.log(LECAM_DECAY) * (step + 1))  # 1 - decay^(step + 1) loses digits
    means = {name: jax.lax.stop_gradient(x).astype(jnp.float32).mean() for name, x in (("real", real), ("fake", fake))}
    return {name: averages[name] + new * (means[name] - averages[name]) for name in means}


# -- What the generator adds


def feature_matching(real: jax.Array, fake: jax.Array) -> jax.Array:
    """|E f(x) - E f(G(z))|^2, f features of D, [B, ...] each: Salimans et al. 2016, section 3.1; in the thesis, 4.3."""
    real, fake = _wide(real, fake)
    return ((real.mean(axis=0) - fake.mean(axis=0)) ** 2).sum()


def _wide(*arrays):
    return [x.astype(jnp.float32) for x in arrays]


def _squares(gradients):
    """Squared norm of each example's gradient, float32 [B]."""
    gradients = gradients.astype(jnp.float32)
    return (gradients**2).sum(axis=tuple(range(1, gradients.ndim)))
