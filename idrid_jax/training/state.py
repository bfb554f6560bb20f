"""What a training step changes, as plain pytrees of arrays: all of it, and nothing else, is in a checkpoint."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from idrid_jax.models.functional import Functional, Tree
from idrid_jax.training.augment import fresh


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkState:
    """One network.

    Attributes:
      params: parameters, float32.
      stats: BatchNorm's running statistics, float32; empty without BatchNorm.
      opt: the optimizer's state.
    """

    params: Tree
    stats: Tree
    opt: Any


# Fields of `TrainState` that came later: not in its pytree while they are empty dicts, so that checkpoints of older
# runs have the structure that is looked for.
LATER = ("lecam", "augment", "restarts")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Both networks and the progress.

    Attributes:
      step: int32 [], updates done; every random number is a function of (seed, step).
      g, d: generator and discriminator.
      ema: moving average of the generator's parameters; an empty dict where it is off.
      best: float32 [], the best value so far of the measure that `config.checkpoint.best` names; +inf before the first.
      lecam: LeCam's averages of D's logits, float32 [] "real" and "fake"; an empty dict where it is off.
      augment: of an augmentation that adapts, float32 [] "p" and "r" (see `augment.Augmentation`); else an empty dict.
      restarts: int32 [], how often training went back after it had diverged (see `divergence`): each time updates are
        half as large from there on. An empty dict only where a checkpoint older than it is looked for.
    """

    step: jax.Array
    g: NetworkState
    d: NetworkState
    ema: Tree
    best: jax.Array
    lecam: Tree = dataclasses.field(default_factory=dict)
    augment: Tree = dataclasses.field(default_factory=dict)
    restarts: jax.Array | Tree = dataclasses.field(default_factory=dict)

    def tree_flatten_with_keys(self):
        there = lambda name: not (name in LATER and isinstance(part := getattr(self, name), dict) and not part)
        names = tuple(field.name for field in dataclasses.fields(self) if there(field.name))
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], names

    @classmethod
    def tree_unflatten(cls, names, parts):
        return cls(**dict(zip(names, parts, strict=True)))


def init_state(
    key: jax.Array,
    generator: Functional,
    discriminator: Functional,
    g_tx: optax.GradientTransformation,
    d_tx: optax.GradientTransformation,
    *,
    ema: bool,
    lecam: bool = False,
    augment: bool = False,
) -> TrainState:
    """A fresh state, a pure function of the key: run it under jit with the shardings that the state shall have."""
    g_key, d_key = jax.random.split(key)
    g_params, g_stats = generator.init(g_key)
    d_params, d_stats = discriminator.init(d_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        g=NetworkState(g_params, g_stats, g_tx.init(g_params)),
        d=NetworkState(d_params, d_stats, d_tx.init(d_params)),
        ema=jax.tree.map(jnp.copy, g_params) if ema else {},
        best=jnp.full((), jnp.inf, jnp.float32),
        lecam={name: jnp.zeros((), jnp.float32) for name in ("real", "fake")} if lecam else {},
        augment=fresh() if augment else {},
        restarts=jnp.zeros((), jnp.int32),
    )


def generator_params(state: TrainState) -> Tree:
    """The parameters that draw samples: the moving average where it is on."""
    return state.ema or state.g.params
