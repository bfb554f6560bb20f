"""The training state: plain pytrees of arrays. All of it, and nothing else, is in a checkpoint."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from idrid_jax.models import build_networks
from idrid_jax.models.functional import Functional, Tree
from idrid_jax.training import optimizers, sharding
from idrid_jax.training.augment import initial_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkState:
    """The state of one network.

    Attributes:
      params: parameters, float32.
      stats: BatchNorm's running statistics, float32; empty without BatchNorm.
      opt: the optimizer's state.
    """

    params: Tree
    stats: Tree
    opt: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Both networks and the progress.

    Attributes:
      step: int32 [], updates done; every random number is a function of (seed, step).
      g, d: generator and discriminator.
      ema: moving average of the generator's parameters; an empty dict if off.
      lecam: LeCam's averages of D's logits, float32 [] "real" and "fake"; an empty dict if off.
      augment: state of an adaptive augmentation, float32 [] "p" and "r" (see `augment.Augmentation`); else an empty
        dict.
    """

    step: jax.Array
    g: NetworkState
    d: NetworkState
    ema: Tree
    lecam: Tree
    augment: Tree

    @property
    def sampling_params(self) -> Tree:
        """Parameters that images are sampled with: the moving average where there is one."""
        return self.ema or self.g.params


def fresh_state(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> TrainState:
    """Return the state of `config` before its first update, a function of `config.seed`, on the devices of `mesh`."""
    init = _initializer(config)
    return jax.jit(init, out_shardings=state_sharding(config, mesh))(jax.random.key(config.seed))


def abstract_state(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> TrainState:
    """Return `fresh_state` as shapes, dtypes and shardings, without arrays."""
    return _with_sharding(_abstract(config), state_sharding(config, mesh))


def state_sharding(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh):
    """Return how the state lies on the devices: one sharding for all of it, or a tree under `config.mesh.fsdp`."""
    if not config.mesh.fsdp:
        return sharding.replicated(mesh)
    return sharding.shard_arrays(_abstract(config), mesh)


def single_device_state(config: ml_collections.ConfigDict) -> TrainState:
    """Return `abstract_state` on the first device."""
    return _with_sharding(_abstract(config), jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def init_state(
    key: jax.Array,
    generator: Functional,
    discriminator: Functional,
    g_optimizer: optax.GradientTransformation,
    d_optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
    lecam: bool = False,
    adaptive_augment: bool = False,
) -> TrainState:
    """Return a fresh state, a pure function of the key."""
    g_key, d_key = jax.random.split(key)
    g_params, g_stats = generator.init(g_key)
    d_params, d_stats = discriminator.init(d_key)
    g = NetworkState(g_params, g_stats, g_optimizer.init(g_params))
    d = NetworkState(d_params, d_stats, d_optimizer.init(d_params))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        g=g,
        d=d,
        ema=jax.tree.map(jnp.copy, g.params) if ema else {},
        lecam={name: jnp.zeros((), jnp.float32) for name in ("real", "fake")} if lecam else {},
        augment=initial_state() if adaptive_augment else {},
    )


def _initializer(config):
    """Return key -> the state of `config`."""
    rates = config.optimizer.g_learning_rate, config.optimizer.d_learning_rate
    return functools.partial(
        _init_from_key,
        (*build_networks(config), *(optimizers.make_optimizer(config, rate) for rate in rates)),
        dict(
            ema=bool(config.ema_kimg),
            lecam=bool(config.loss.lecam),
            adaptive_augment=config.augment.mode == "adaptive",
        ),
    )


def _init_from_key(parts, options, key):
    return init_state(key, *parts, **options)


def _abstract(config):
    return jax.eval_shape(_initializer(config), jax.random.key(0))


def _with_sharding(shapes, shardings):
    """Add shardings, one for all of the tree or one for each leaf, to a tree of shapes."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)
