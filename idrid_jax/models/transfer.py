"""Which layers of one network fit another of its family, of the same size or of another; functions of trees of arrays.

A layer is what one path of a network holds: parameters and BatchNorm statistics. It fits if the other network has
arrays of the same names and shapes at that path. Levels are in lists, which are longer in a larger network, and are
counted from the coarsest one, so that levels of equal resolution match: from the start of the list in a generator, from
its end in a discriminator.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax

from idrid_jax.models.functional import Tree

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Which layers of a network fit.

    Attributes:
      layers: path as it is printed -> whether the layer fits; all layers of the network.
      fitting: paths of the fitting layers, with levels counted from the coarsest.
      arrays, all_arrays: number of arrays that fit, and of all arrays.
      values, all_values: number of values in the fitting arrays, and in all.
    """

    layers: dict[Path, bool]
    fitting: frozenset[Path]
    arrays: int
    all_arrays: int
    values: int
    all_values: int

    def names(self) -> list[str]:
        """Return the names of the fitting parts; a part that fits as a whole is named once."""
        return list(self._names_below(()))

    def _names_below(self, prefix: Path) -> Iterator[str]:
        inside = {path: fits for path, fits in self.layers.items() if path[: len(prefix)] == prefix}
        if prefix and all(inside.values()):
            yield "/".join(map(str, prefix))
        elif any(inside.values()):
            for part in dict.fromkeys(path[: len(prefix) + 1] for path in inside if len(path) > len(prefix)):
                yield from self._names_below(part)


def fit(target: tuple[Tree, Tree], source: tuple[Tree, Tree], *, coarsest_last: bool) -> Fit:
    """Return which layers of `target` fit `source`.

    target, source: (parameters, batch statistics); arrays or shapes. coarsest_last: lists of levels end with the
    coarsest one (discriminators).
    """
    layers, printed = _layers(target, coarsest_last)
    others, _ = _layers(source, coarsest_last)
    fitting = frozenset(path for path in layers if path in others and _shapes(layers[path]) == _shapes(others[path]))
    sizes = {path: sum(math.prod(leaf.shape) for leaf in layer.values()) for path, layer in layers.items()}
    return Fit(
        {printed[path]: path in fitting for path in layers},
        fitting,
        sum(len(layers[path]) for path in fitting),
        sum(map(len, layers.values())),
        sum(sizes[path] for path in fitting),
        sum(sizes.values()),
    )


def copy_fitting(target: Tree, source: Tree, found: Fit, *, coarsest_last: bool) -> Tree:
    """Return `target` with the arrays of the fitting layers from `source`."""
    arrays = {path: leaf for path, _, leaf in _leaves(source, coarsest_last)}
    return _map_leaves(
        lambda path, _, leaf: arrays[path] if path[:-1] in found.fitting else leaf, target, coarsest_last
    )


def _shapes(layer):
    return {name: leaf.shape for name, leaf in layer.items()}


def _layers(network, coarsest_last) -> tuple[dict[Path, dict[str, jax.Array]], dict[Path, Path]]:
    """Return path of each layer -> its arrays by name, and path -> path to print."""
    layers, printed = {}, {}
    for tree in network:
        for path, printed_path, leaf in _leaves(tree, coarsest_last):
            layers.setdefault(path[:-1], {})[path[-1]] = leaf
            printed[path[:-1]] = printed_path[:-1]
    return layers, printed


def _leaves(tree, coarsest_last) -> list[tuple[Path, Path, jax.Array]]:
    found = []
    _map_leaves(lambda *leaf: found.append(leaf), tree, coarsest_last)
    return found


def _map_leaves(function: Callable, tree: Tree, coarsest_last: bool, path: Path = (), printed: Path = ()) -> Tree:
    """Return the tree of function(path, path to print, leaf).

    In a list (keys 0, 1, ...) whose last level is the coarsest, paths count from the end: -1, -2, ...
    """
    offset = len(tree) if coarsest_last and all(isinstance(key, int) for key in tree) else 0
    result = {}
    for key, part in tree.items():
        here = (*path, key - offset if offset else key), (*printed, key)
        is_tree = isinstance(part, dict)
        result[key] = _map_leaves(function, part, coarsest_last, *here) if is_tree else function(*here, part)
    return result
