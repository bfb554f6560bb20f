"""BatchNorm's statistics for weights that no batch has passed, such as a moving average of the generator's.

The running statistics belong to the weights that they were collected with; an average of these has others, and draws
washed-out or glaring images with them (Brock et al., "Large scale GAN training", ICLR 2019, appendix C: "standing
statistics").
"""

import jax
import jax.numpy as jnp

from idrid_jax.models.functional import Functional, Tree

BATCHES = 8


def of(generator: Functional, params: Tree, stats: Tree, latent: int, grades: jax.Array, at_once: int) -> Tree:
    """The statistics of all features of BATCHES batches that these parameters draw, in the place of `stats`. Pure.

    grades: int32 [N], a mixture as it shall be drawn. at_once: images of a batch. Each batch passes with its own
    statistics, as in training; means are averaged over batches, variances are within and between them.
    """
    z = jax.random.normal(jax.random.key(0), (BATCHES, at_once, latent))
    mixture = jax.random.permutation(jax.random.key(1), jnp.resize(grades, BATCHES * at_once))
    each = lambda batch: generator.batch_statistics(params, stats, *batch)
    return _pooled(jax.lax.map(each, (z, mixture.reshape(BATCHES, at_once))))


def _pooled(tree):
    if isinstance(tree.get("mean"), jax.Array):
        return {"mean": jnp.mean(tree["mean"], 0), "var": jnp.mean(tree["var"], 0) + jnp.var(tree["mean"], 0)}
    return {name: _pooled(part) for name, part in tree.items()}
