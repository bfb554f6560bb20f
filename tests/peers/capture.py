"""Our networks held against a peer's: filled with random arrays, run once, the input and output of every layer kept.

The output of an activation is the input of the layer after it, so these two are every value between the layers.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from idrid_jax.models.layers import Conv, ConvTranspose

LAYERS = (Conv, ConvTranspose, nnx.Linear, nnx.Embed, nnx.BatchNorm, nnx.Dropout)


@dataclasses.dataclass(frozen=True)
class Call:
    """One layer's call: the layer's name in the network ("up.0"), what went in and what came out."""

    name: str
    input: np.ndarray
    output: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a network made of its inputs. Arrays by the layer's name and the array's own ("up.0", "kernel")."""

    output: np.ndarray
    calls: list[Call]
    gradients: dict[tuple[str, str], np.ndarray]
    input_gradient: np.ndarray
    module: nnx.Module  # with the statistics that the call left


def filled(make: Callable[..., nnx.Module], dtype, seed: int = 0) -> nnx.Module:
    """The network with every array random, biases and statistics too: one that is swapped or forgotten must show.

    It holds and computes `dtype`. float64 (in `jax.enable_x64`) is for gradients: in float32 a value within rounding of
    a ReLU's kink falls to either side, and one such value among 100,000 moves a gradient by some per cent.
    """
    rng = np.random.default_rng(seed)
    draw = {
        "kernel": lambda shape: 0.02 * rng.standard_normal(shape),
        "embedding": lambda shape: rng.standard_normal(shape),
        "scale": lambda shape: 1 + 0.1 * rng.standard_normal(shape),
        "bias": lambda shape: 0.1 * rng.standard_normal(shape),
        "mean": lambda shape: 0.1 * rng.standard_normal(shape),
        "var": lambda shape: rng.uniform(0.5, 1.5, shape),
    }
    graph, state = nnx.split(nnx.eval_shape(lambda: make(dtype=dtype, rngs=nnx.Rngs(0))))
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(draw[path[-1].key](a.shape), dtype), nnx.to_pure_dict(state)
    )
    return nnx.merge(graph, arrays)


@contextlib.contextmanager
def recorded(module: nnx.Module):
    """Within, every layer of `module` that is called appends (name, input, output) to the list that this gives."""
    names = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(module)}
    calls = []

    def wrap(original):
        def call(self, x, *args, **kwargs):
            y = original(self, x, *args, **kwargs)
            calls.append((names[id(self)], x, y))
            return y

        return call

    with contextlib.ExitStack() as stack:
        for kind in LAYERS:
            stack.enter_context(mock.patch.object(kind, "__call__", wrap(kind.__call__)))
        yield calls


def run(module: nnx.Module, x: np.ndarray, grades: np.ndarray | None, cotangent: np.ndarray | None) -> Run:
    """Call `module` on (x, grades) and pull `cotangent` back to the parameters and to x; no cotangent, no gradients.

    `module` itself stays as it is.
    """
    graph, parameters, statistics = nnx.split(module, nnx.Param, ...)
    parameters, statistics = nnx.to_pure_dict(parameters), nnx.to_pure_dict(statistics)
    names = []

    def loss(parameters, x):
        module = nnx.merge(graph, parameters, statistics)
        with recorded(module) as calls:
            y = module(x, grades)
        names[:] = [name for name, *_ in calls]
        state = nnx.to_pure_dict(nnx.state(module))
        return 0 if cotangent is None else jnp.sum(y * cotangent), (y, [values for _, *values in calls], state)

    with jax.default_matmul_precision("highest"):  # a GPU would round float32 products to TF32
        if cotangent is None:
            _, (y, values, state) = jax.jit(loss)(parameters, x)
            gradients, input_gradient = {}, np.zeros(())
        else:
            (_, (y, values, state)), (gradients, input_gradient) = jax.jit(
                jax.value_and_grad(loss, (0, 1), has_aux=True)
            )(parameters, x)
    calls = [Call(name, *map(np.asarray, two)) for name, two in zip(names, values, strict=True)]
    return Run(np.asarray(y), calls, by_layer(gradients), np.asarray(input_gradient), nnx.merge(graph, state))


def evaluate(module: nnx.Module, x: np.ndarray, grades: np.ndarray | None = None) -> np.ndarray:
    """The output in eval mode: no dropout, BatchNorm by its running statistics."""
    module.eval()
    graph, state = nnx.split(module)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x, grades))(nnx.to_pure_dict(state), x))


def arrays(module: nnx.Module) -> dict[tuple[str, str], np.ndarray]:
    """Parameters and statistics."""
    return by_layer(nnx.to_pure_dict(nnx.state(module)))


def by_layer(tree) -> dict[tuple[str, str], np.ndarray]:
    """{"up": {0: {"kernel": a}}} -> {("up.0", "kernel"): a}"""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {(".".join(str(key.key) for key in path[:-1]), path[-1].key): np.asarray(a) for path, a in flat}


def difference(ours, theirs) -> float:
    """The largest difference, as a share of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
