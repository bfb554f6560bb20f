"""A batch in micro-batches, one after the other, and the means of what they give; pure.

Memory for activations is that of one micro-batch. An update is the one of the whole batch, to rounding, while every
term of its objectives is a mean over images, or over pairs of a real and a fake one, which stay together. What is a
function of the batch as a whole would become one of the micro-batch: networks with BatchNorm, LeCam and feature
matching are refused with `config.accumulate` (see `config.check`). Dropout and augmentation are drawn anew for each
micro-batch, by keys of its own: as random as before, and not the same draw.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What an update is made of, or a micro-batch of it.

    Attributes:
      images: real ones, uint8 [B, R, R, C].
      grades: what the networks hear of them, [B, ...].
      z: latents, [B, latent]; image i and latent i are a pair.
      share: of the real image in what `gradient_penalty` looks at, float32 [B].
      mirrored: which real images are, bool [B, 1, 1, 1]; None where none is.
      keys: of D's looks, one each.
    """

    images: jax.Array
    grades: jax.Array
    z: jax.Array
    share: jax.Array
    mirrored: jax.Array | None
    keys: jax.Array


def parted(batch: Batch, parts: int) -> Batch:
    """The same with a leading axis of micro-batches, B / parts images each: every `parts`th image.

    So each device gives an equal part of its own images to every micro-batch, and none goes to another device.
    """
    deal = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    keys = jax.vmap(lambda part: jax.vmap(lambda key: jax.random.fold_in(key, part))(batch.keys))(jnp.arange(parts))
    return dataclasses.replace(jax.tree.map(deal, dataclasses.replace(batch, keys=None)), keys=keys)


def over(batch: Batch, parts: int, of: Callable[[Batch], tuple[Any, Any]]) -> tuple[Any, Any]:
    """(means, what there is of each image) by `of`, from the batch at once or from `parts` micro-batches of it.

    of: a batch -> (a tree of what is a mean over its images, a tree of arrays [its images, ...]). The latter come
    joined, in the micro-batches' order.
    """
    if parts == 1:
        return of(batch)
    batches = parted(batch, parts)
    shapes, _ = jax.eval_shape(of, jax.tree.map(lambda x: x[0], batches))

    def add(total, part):
        means, each = of(part)
        return jax.tree.map(lambda a, b: a + b / parts, total, means), each

    total, each = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), batches)
    return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
