"""What each network descends: its adversarial loss and what is added to it, each term under its weight; pure."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from idrid_jax.training import losses

Found = dict[str, jax.Array]  # the terms by name, float32 [], before their weights


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of what is added to the adversarial losses (see `losses`); 0 is off.

    Attributes:
      r1, r2: gamma of the zero-centred penalties on real and on fake images, half of which is taken.
      gradient_penalty: of the one-centred penalty between them.
      penalty_every: these three are taken every so many updates, so many times as strong.
      lecam: of the pull of D's logits towards the other side's average; at every update.
      feature_matching: of the distance between D's mean features, added to G's loss.
    """

    r1: float = 0.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    penalty_every: int = 1
    lecam: float = 0.0
    feature_matching: float = 0.0

    @property
    def penalties(self) -> tuple[str, ...]:
        """Those on gradients that are on."""
        return tuple(name for name in ("r1", "r2", "gradient_penalty") if getattr(self, name))

    def added_to(self, loss: jax.Array, found: Found, scale: jax.Array | float = 1.0) -> jax.Array:
        """scale: of the penalties on gradients."""
        for name, term in found.items():
            factor = (0.5 if name in ("r1", "r2") else 1.0) * (scale if name in self.penalties else 1.0)
            loss = loss + factor * getattr(self, name) * term
        return loss


def discriminator(
    loss: Callable,
    weights: Weights,
    pair: Callable,
    alone: Callable,
    images: tuple[jax.Array, jax.Array],
    share: jax.Array,
    averages: dict[str, jax.Array],
    step: jax.Array,
    *,
    due: bool,
    scale: jax.Array | float = 1.0,
):
    """D's objective, to be differentiated in what `pair` and `alone` close over.

    With BatchNorm, which makes an image's logit a function of the whole batch, an image's gradient here is that of the
    sum of its batch's logits.

    Args:
      loss: logits of real and of fake images -> float32 [].
      pair: real and fake images -> (their logits), D's statistics after both passes.
      alone: images -> logits.
      images: real and fake, [B, H, W, C] each.
      share: of the real image in what `gradient_penalty` looks at, float32 [B] in [0, 1].
      averages, step: of LeCam, and updates done.
      due: whether the penalties on gradients are taken at this update.
      scale: of their weights at this update.

    Returns the objective, and (loss, found, logits of real and of fake, statistics, averages). Penalties are found
    times `penalty_every`, and 0 where they are not due, so that means over updates are what they are on average.
    """
    taken = weights.penalties if due else ()
    found = {name: jnp.zeros((), jnp.float32) for name in weights.penalties}
    if "r1" in taken or "r2" in taken:  # one pull-back; through what is not asked for nothing is differentiated again
        logits, to_images, stats = jax.vjp(pair, *images, has_aux=True)
        gradients = dict(zip(("r1", "r2"), to_images(jax.tree.map(jnp.ones_like, logits)), strict=True))
        found |= {name: losses.zero_centred(gradients[name]) for name in gradients if name in taken}
    else:
        logits, stats = pair(*images)
    if "gradient_penalty" in taken:
        gradient = jax.grad(lambda x: alone(x).sum())(losses.between(*images, share))
        found["gradient_penalty"] = losses.one_centred(gradient)
    found = {name: weights.penalty_every * term for name, term in found.items()}
    if weights.lecam:
        averages = losses.lecam_averages(averages, *logits, step)
        found["lecam"] = losses.lecam(*logits, averages)
    adversarial = loss(*logits)
    return weights.added_to(adversarial, found, scale), (adversarial, found, logits, stats, averages)


def generator(
    loss: losses.Adversarial, weights: Weights, fake: tuple[jax.Array, jax.Array], real: tuple[jax.Array, jax.Array]
):
    """G's objective of what D makes of fake and of real images, logits [B] and features [B, ...] each; what is not
    needed may be None. Returns the objective, and (loss, found)."""
    (on_fake, of_fake), (on_real, of_real) = fake, real
    adversarial, found = loss.generator(*((on_fake, on_real) if loss.pairs else (on_fake,))), {}
    if weights.feature_matching:
        found["feature_matching"] = losses.feature_matching(of_real, of_fake)
    return weights.added_to(adversarial, found), (adversarial, found)
