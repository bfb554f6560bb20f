"""A network that is told classes in place of grades: some grades are one to it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from idrid_jax.models.functional import Functional, Tree


@dataclasses.dataclass(frozen=True)
class Pooled(Functional):
    """A `Functional` of (x, grades): it takes grades int32 [B] for their classes, and shares of grades, float [B, 5],
    for those of the classes, whoever gives them. Its arrays are those of the network itself.

    Attributes:
      classes: the class of each grade, one of its own grades, so that the network's embedding keeps its size.
    """

    classes: tuple[int, ...] = ()

    def told(self, grades: jax.Array) -> jax.Array:
        """What the network is told in place of grades."""
        if jnp.issubdtype(grades.dtype, jnp.integer):
            return jnp.asarray(self.classes, grades.dtype)[grades]
        return grades @ jax.nn.one_hot(jnp.asarray(self.classes), len(self.classes), dtype=grades.dtype)

    def train(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, **kwargs):
        return super().train(params, stats, x, self.told(grades), **kwargs)

    def train_features(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, **kwargs):
        return super().train_features(params, stats, x, self.told(grades), **kwargs)

    def eval(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, *, method: Callable | None = None):
        return super().eval(params, stats, x, self.told(grades), method=method)

    def batch_statistics(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array):
        return super().batch_statistics(params, stats, x, self.told(grades))


def pooled(network: Functional, classes: tuple[int, ...]) -> Functional:
    """`network` told classes; itself where each grade is its own class."""
    if classes == tuple(range(len(classes))):
        return network
    return Pooled(network.make, network.train_graph, network.eval_graph, classes)
