"""The layers of a network with their shapes, as text: what a run prints before it begins."""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.models.functional import Functional


def networks_table(config: ml_collections.ConfigDict) -> str:
    """List the layers of both networks of `config` with the shapes that one image gives them."""
    network = NETWORKS[config.network]
    z = jax.ShapeDtypeStruct((1, network.latent_size), jnp.float32)
    images = jax.ShapeDtypeStruct((1, network.size, network.size, network.channels), jnp.float32)
    grades = jax.ShapeDtypeStruct((1,), jnp.int32)
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.remat = False  # the same layers, which remat would call as copies
    generator, discriminator = build_networks(config)
    return f"{table(generator, z, grades)}\n\n{table(discriminator, images, grades)}"


def table(network: Functional, *inputs: jax.ShapeDtypeStruct) -> str:
    """A line for each layer in the order of its call, the whole network first.

    It is found by tracing one call over shapes: nothing is computed or compiled, which `nnx.tabulate` does for every
    layer, at a third of a second of each start.
    """
    rows = []

    def forward(*inputs):
        module = network.zero_module()
        with _recorded(module, rows):
            module(*inputs)

    jax.eval_shape(forward, *inputs)
    rows.insert(0, ("layer", "type", "inputs", "output", "parameters", ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    align = [str.ljust, str.ljust, str.ljust, str.ljust, str.rjust, str.ljust]
    return "\n".join("  ".join(map(lambda f, *a: f(*a), align, row, widths)).rstrip() for row in rows)


@contextlib.contextmanager
def _recorded(module: nnx.Module, rows: list[tuple[str, ...]]) -> Iterator[None]:
    """Within the block every call of `module` and its parts leaves a row."""
    parts = [(path, part) for path, part in nnx.iter_modules(module) if callable(part)]
    names = {id(part): "/".join(map(str, path)) for path, part in parts}

    def recording(call):
        @functools.wraps(call)
        def recorded(part, *args, **kwargs):
            place = len(rows)  # what it calls in turn comes after it
            output = call(part, *args, **kwargs)
            shapes = " ".join(_shape(x) for x in args if x is not None)
            rows.insert(place, (names[id(part)], type(part).__name__, shapes, _shape(output), *_arrays(part)))
            return output

        return recorded

    calls = {kind: kind.__call__ for kind in {type(part) for _, part in parts}}
    try:
        for kind, call in calls.items():
            kind.__call__ = recording(call)
        yield
    finally:
        for kind, call in calls.items():
            kind.__call__ = call


def _arrays(part: nnx.Module) -> tuple[str, str]:
    """How many parameters it has in all, and the names and shapes of its own arrays."""
    params = [math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(part, nnx.Param)))]
    own = {name: value for name, value in vars(part).items() if isinstance(value, nnx.Variable)}
    shapes = lambda kind: [f"{name}{_size(own[name])}" for name in own if isinstance(own[name], kind)]
    statistics = shapes(nnx.BatchStat)
    text = " ".join(shapes(nnx.Param) + (["statistics", *statistics] if statistics else []))
    return f"{sum(params):,}" if params else "", text


def _shape(x) -> str:
    return f"{x.dtype}{_size(x)}"


def _size(x) -> str:
    return f"[{','.join(map(str, x.shape))}]"
