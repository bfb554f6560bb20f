"""A module as two pure functions over plain dicts: the only file that knows `nnx.split` and `nnx.merge`.

`nnx.jit` walks the object graph in Python at every call; plain dicts under an ordinary `jax.jit` cost nothing, and
survive NNX's coming tree mode. `merge` builds fresh variables, so BatchNorm may update them inside `grad`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Tree = dict[str, Any]  # nested dicts of arrays


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network without its arrays.

    Attributes:
      make: rngs -> module.
      train_graph, eval_graph: the module's structure with batch statistics and dropout on, and with running statistics.
    """

    make: Callable[..., nnx.Module]
    train_graph: Any
    eval_graph: Any

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh parameters and batch statistics, float32, from a PRNG key; pure, so that it can run under jit."""
        _, params, stats = nnx.split(self.make(rngs=nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def zeros(self) -> nnx.Module:
        """The module in its evaluation form with all arrays 0: for its structure, at no cost of drawing parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return nnx.merge(self.eval_graph, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def train(self, params: Tree, stats: Tree, *args, **kwargs) -> tuple[jax.Array, Tree]:
        """Output with the batch's statistics, and the running statistics moved towards them."""
        module = nnx.merge(self.train_graph, params, stats)
        output = module(*args, **kwargs)
        return output, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def train_features(self, params: Tree, stats: Tree, *args, **kwargs) -> tuple[tuple[jax.Array, jax.Array], Tree]:
        """A discriminator's `train`: (its logits, the features [B, ...] that they are made of), running statistics."""
        module = nnx.merge(self.train_graph, params, stats)
        features = module.features(*args, **kwargs)
        return (module.judge(features, *args[1:]), features), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def eval(self, params: Tree, stats: Tree, *args, method: Callable | None = None) -> jax.Array:
        """Output with the running statistics and without dropout; of `method` (module, *args) where it is given."""
        module = nnx.merge(self.eval_graph, params, stats)
        return method(module, *args) if method else module(*args)

    def batch_statistics(self, params: Tree, stats: Tree, *args) -> Tree:
        """The batch's own statistics, in the place of the running ones."""
        module = nnx.merge(self.train_graph, params, stats)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.BatchNorm):
                part.momentum = 0.0
        module(*args)
        return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def functional(make: Callable[..., nnx.Module]) -> Functional:
    """`make(rngs=)` -> its pure form; the module is built abstractly, so this costs no memory."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    module.train()
    train_graph = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
    module.eval()
    eval_graph = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
    return Functional(make, train_graph, eval_graph)
