"""Starting from another run's networks, of the same size or of another one of the family: which layers fit.

A layer is what one path of a network holds, parameters and BatchNorm's statistics. It fits where the other network has
arrays of the same names and shapes at that path. Levels lie in lists, of which a larger network's are longer; they are
counted from the coarsest, so that a level meets the one that sees as many pixels a side. That is a list's beginning in
a generator, which goes from 4 pixels to the image, and its end in a discriminator, which goes down from there. (Levels
named by their pixels would meet by themselves, and every checkpoint written before would be lost.)
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import ml_collections

from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Tree
from idrid_jax.training.checkpoint import read_run
from idrid_jax.training.run_dir import read_record
from idrid_jax.training.state import NetworkState, TrainState

LEAST = 0.1  # of the parameters: with fewer from the other run this would be training from scratch under another name

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What of a network fits.

    Attributes:
      layers: path as it is printed -> whether the layer fits; all of the network's.
      taken: paths of those that fit, their levels counted from the coarsest.
      arrays, all_arrays: how many fit, and how many there are.
      values, all_values: likewise, of the numbers in the parameters.
    """

    layers: dict[Path, bool]
    taken: frozenset[Path]
    arrays: int
    all_arrays: int
    values: int
    all_values: int

    def names(self) -> list[str]:
        """Of what fits, as few as say it: a part of which everything fits is named alone."""

        def below(prefix: Path) -> Iterable[str]:
            inside = {path: fits for path, fits in self.layers.items() if path[: len(prefix)] == prefix}
            if prefix and all(inside.values()):
                yield "/".join(map(str, prefix))
            elif any(inside.values()):
                for part in dict.fromkeys(path[: len(prefix) + 1] for path in inside if len(path) > len(prefix)):
                    yield from below(part)

        return list(below(()))


def find(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where `config.init_from` is no run: sooner than `start_from`, which needs a compiled state."""
    with _named():
        read_record(config.init_from)


@contextlib.contextmanager
def _named():
    try:
        yield
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error


def start_from(config: ml_collections.ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """A fresh state with what fits of both networks, and of the moving average, of the run `config.init_from`, as
    `read_run` takes it; and lines that tell what that is.

    What does not fit, optimizers and progress begin fresh. Raises UserError where `read_run` does, and where the run's
    network is of another family or hardly anything of it fits.
    """
    with _named():
        other, source = read_run(config.init_from, sharding=state.step.sharding)
    fits = fit(state.g, source.g, deepest_last=False), fit(state.d, source.d, deepest_last=True)
    _check_fit(config, other.config, fits)

    def take(mine: Tree, theirs: Tree, which: int) -> Tree:
        there = {path: leaf for path, _, leaf in _leaves(theirs, bool(which))}
        chosen = lambda path, _, leaf: there[path] if path[:-1] in fits[which].taken else leaf
        return _mapped(chosen, mine, bool(which))

    def begun(mine: NetworkState, theirs: NetworkState, which: int) -> NetworkState:
        params, stats = (take(getattr(mine, name), getattr(theirs, name), which) for name in ("params", "stats"))
        return dataclasses.replace(mine, params=params, stats=stats)

    average = jax.tree.map(jnp.copy, take(state.ema, source.sampling_params, 0)) if config.ema_kimg else {}
    start = dataclasses.replace(state, g=begun(state.g, source.g, 0), d=begun(state.d, source.d, 1), ema=average)
    placed = jax.tree.map(lambda x: x.sharding, state)  # split under fsdp, as the other run's need not be
    return jax.jit(lambda state: state, out_shardings=placed)(start), _told(config, other.config, fits)


def fit(mine: NetworkState, theirs: NetworkState, *, deepest_last: bool) -> Fit:
    """What of `mine` fits `theirs`; arrays or shapes alone. deepest_last: lists of levels end with the coarsest."""
    (ours, shown), (others, _) = _layers(mine, deepest_last), _layers(theirs, deepest_last)
    shapes = lambda layer: {name: leaf.shape for name, leaf in layer.items()}
    taken = frozenset(path for path in ours if path in others and shapes(ours[path]) == shapes(others[path]))
    values = {path: sum(math.prod(leaf.shape) for leaf in layer.values()) for path, layer in ours.items()}
    return Fit(
        {shown[path]: path in taken for path in ours},
        taken,
        sum(len(ours[path]) for path in taken),
        sum(map(len, ours.values())),
        sum(values[path] for path in taken),
        sum(values.values()),
    )


def _layers(network, deepest_last) -> tuple[dict[Path, dict[str, jax.Array]], dict[Path, Path]]:
    """Path of each layer -> its arrays by name, and that path -> the one to print."""
    layers, shown = {}, {}
    for tree in (network.params, network.stats):
        for path, printed, leaf in _leaves(tree, deepest_last):
            layers.setdefault(path[:-1], {})[path[-1]] = leaf
            shown[path[:-1]] = printed[:-1]
    return layers, shown


def _leaves(tree, deepest_last) -> list[tuple[Path, Path, jax.Array]]:
    found = []
    _mapped(lambda *leaf: found.append(leaf), tree, deepest_last)
    return found


def _mapped(f: Callable, tree: Tree, deepest_last: bool, path: Path = (), printed: Path = ()) -> Tree:
    """The tree of f(path, path to print, leaf). In a list (keys 0, 1, ...) that ends with the coarsest level, the path
    counts from the end: -1, -2, ..."""
    less = len(tree) if deepest_last and all(isinstance(key, int) for key in tree) else 0
    made = {}
    for key, part in tree.items():
        here = (*path, key - less if less else key), (*printed, key)
        made[key] = _mapped(f, part, deepest_last, *here) if isinstance(part, dict) else f(*here, part)
    return made


def _check_fit(config, other, fits) -> None:
    kin = NETWORKS[config.network].family == NETWORKS[other.network].family
    values, all_values = (sum(getattr(one, name) for one in fits) for name in ("values", "all_values"))
    if kin and values >= LEAST * all_values:
        return
    adjustable = "max_channels" in NETWORKS[config.network].options
    if kin and adjustable and other.model.max_channels != config.model.max_channels:
        advice = f"set config.model.max_channels to {other.model.max_channels}, as it has"
    else:
        family = [name for name, one in NETWORKS.items() if one.family == NETWORKS[config.network].family]
        advice = f"name a run of {config.network if kin else ' or '.join(family)}"
    found = _which(fits)
    raise UserError(
        f"config.init_from = {config.init_from!r}: its network is {other.network}, and of the "
        f"{sum(one.all_arrays for one in fits)} arrays of {config.network} {sum(one.arrays for one in fits) or 'none'} "
        f"fit{f' ({found})' if found else ''}: {advice}"
    )


def _which(fits) -> str:
    named = (("generator", fits[0].names()), ("discriminator", fits[1].names()))
    return "; ".join(f"{network}: {', '.join(names)}" for network, names in named if names)


def _told(config, other, fits) -> list[str]:
    arrays, all_arrays = (sum(getattr(one, name) for one in fits) for name in ("arrays", "all_arrays"))
    source = f"from {config.init_from} ({other.network})"
    if arrays == all_arrays:
        return [f"{source}: all {arrays} arrays"]
    return [f"{source}: {arrays} of {all_arrays} arrays fit, the others begin fresh; {_which(fits)}"]
