"""Adversarial losses on logits; pure. Each takes logits [B] and gives a float32 scalar."""

import jax
import jax.numpy as jnp


def discriminator_bce(real: jax.Array, fake: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-E[(1 - e) log D(x) + e log(1 - D(x))] - E[log(1 - D(G(z)))], with D = sigmoid of the logits.

    Goodfellow et al. 2014, equation 1; one-sided label smoothing e as Salimans et al. 2016, 3.4. The sum of both
    halves, not their mean: the thesis's Loss_D.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    # -log sigmoid(s) = softplus(-s) and -log(1 - sigmoid(s)) = softplus(s)
    on_real = (1 - smoothing) * jax.nn.softplus(-real) + smoothing * jax.nn.softplus(real)
    return on_real.mean() + jax.nn.softplus(fake).mean()


def generator_bce(fake: jax.Array) -> jax.Array:
    """-E[log D(G(z))], the non-saturating form: Goodfellow et al. 2014, section 3."""
    return jax.nn.softplus(-fake.astype(jnp.float32)).mean()
