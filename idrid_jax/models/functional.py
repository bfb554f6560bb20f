"""Flax NNX modules as pure functions over nested dicts of arrays: the only file that calls `nnx.split` and `nnx.merge`.

`nnx.jit` walks the object graph in Python at every call; nested dicts under an ordinary `jax.jit` add no such cost.
`nnx.merge` creates new variables, so BatchNorm may update them inside `jax.grad`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Tree = dict[str, Any]  # nested dicts of arrays

RECOMPUTE_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Functional:
    """The structure of a network; its arrays are arguments of the methods.

    `params` are the parameters and `stats` the running statistics of BatchNorm, as `init` returns them.

    Attributes:
      make: (rngs=) -> module.
      train_graph, eval_graph: the structure of the module in training mode (statistics of the batch, dropout on) and in
        evaluation mode (running statistics, dropout off).
    """

    make: Callable[..., nnx.Module]
    train_graph: Any
    eval_graph: Any

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return initial (params, stats), float32, from a PRNG key. Pure: it can run under `jax.jit`."""
        _, params, stats = nnx.split(self.make(rngs=nnx.Rngs(params=key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def zero_module(self) -> nnx.Module:
        """Return the module in evaluation mode with all arrays 0; cheaper than sampling initial parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return nnx.merge(self.eval_graph, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def train(self, params: Tree, stats: Tree, *args, **kwargs) -> tuple[jax.Array, Tree]:
        """Call the module in training mode. Returns (output, updated running statistics)."""
        module = nnx.merge(self.train_graph, params, stats)
        output = module(*args, **kwargs)
        return output, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def train_features(self, params: Tree, stats: Tree, *args, **kwargs) -> tuple[tuple[jax.Array, jax.Array], Tree]:
        """Call a discriminator in training mode. Returns ((logits [B], features [B, ...]), updated statistics)."""
        module = nnx.merge(self.train_graph, params, stats)
        features = module.features(*args, **kwargs)
        return (module.logits(features, *args[1:]), features), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def eval(self, params: Tree, stats: Tree, *args, method: Callable | None = None) -> jax.Array:
        """Call the module, or method(module, *args) if `method` is given, in evaluation mode."""
        module = nnx.merge(self.eval_graph, params, stats)
        return method(module, *args) if method else module(*args)

    def batch_stats(self, params: Tree, stats: Tree, *args) -> Tree:
        """Return the BatchNorm statistics of this batch alone, in the structure of `stats`."""
        module = nnx.merge(self.train_graph, params, stats)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.BatchNorm):
                part.momentum = 0.0
        module(*args)
        return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def functional(make: Callable[..., nnx.Module]) -> Functional:
    """Return the pure form of the module that make(rngs=) builds. Allocates no arrays."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    module.train()
    train_graph = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
    module.eval()
    eval_graph = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
    return Functional(make, train_graph, eval_graph)


@dataclasses.dataclass(frozen=True)
class ClassMapped(Functional):
    """A network of (x, grades) that maps each grade to its class first. Its arrays are those of the network itself.

    Attributes:
      class_map: the class of each grade, itself a grade of that class, so that embeddings keep their size.
    """

    class_map: tuple[int, ...] = ()

    def classes(self, grades: jax.Array) -> jax.Array:
        """Map grades int32 [B], or grade weights float [B, 5], to classes of the same shape and dtype."""
        if jnp.issubdtype(grades.dtype, jnp.integer):
            return jnp.asarray(self.class_map, grades.dtype)[grades]
        return grades @ jax.nn.one_hot(jnp.asarray(self.class_map), len(self.class_map), dtype=grades.dtype)

    def train(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, **kwargs):
        return super().train(params, stats, x, self.classes(grades), **kwargs)

    def train_features(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, **kwargs):
        return super().train_features(params, stats, x, self.classes(grades), **kwargs)

    def eval(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array, *, method: Callable | None = None):
        return super().eval(params, stats, x, self.classes(grades), method=method)

    def batch_stats(self, params: Tree, stats: Tree, x: jax.Array, grades: jax.Array):
        return super().batch_stats(params, stats, x, self.classes(grades))


def with_class_map(network: Functional, class_map: tuple[int, ...]) -> Functional:
    """Return `network` with grades mapped to classes; `network` itself if every grade is its own class."""
    if class_map == tuple(range(len(class_map))):
        return network
    return ClassMapped(network.make, network.train_graph, network.eval_graph, class_map)


def recompute_batch_stats(
    generator: Functional, params: Tree, stats: Tree, latent_size: int, grades: jax.Array, batch_size: int
) -> Tree:
    """Compute BatchNorm statistics for parameters that no training batch has passed, such as a moving average. Pure.

    Running statistics belong to the parameters that they were collected with; under averaged parameters they give
    images with wrong contrast. Source: Brock et al. 2019, "Large scale GAN training for high fidelity natural image
    synthesis", appendix C ("standing statistics").

    Args:
      grades: int32 [N], the mixture of grades to generate.
      batch_size: images of each of the `RECOMPUTE_BATCHES` batches, which pass with their own statistics as in
        training.

    Returns:
      Statistics in the structure of `stats`: means over all batches, variances within and between batches.
    """
    z = jax.random.normal(jax.random.key(0), (RECOMPUTE_BATCHES, batch_size, latent_size))
    mixture = jax.random.permutation(jax.random.key(1), jnp.resize(grades, RECOMPUTE_BATCHES * batch_size))
    mixture = mixture.reshape(RECOMPUTE_BATCHES, batch_size)
    batches = jax.lax.map(lambda batch: generator.batch_stats(params, stats, *batch), (z, mixture))
    return _pool_batches(batches)


def _pool_batches(tree: Tree) -> Tree:
    if isinstance(tree.get("mean"), jax.Array):
        return {"mean": jnp.mean(tree["mean"], 0), "var": jnp.mean(tree["var"], 0) + jnp.var(tree["mean"], 0)}
    return {name: _pool_batches(part) for name, part in tree.items()}
