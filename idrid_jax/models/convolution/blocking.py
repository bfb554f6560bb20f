"""Help XLA on CPU: write intermediate arrays to memory once, and process a large batch in parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

# Limit for the intermediate arrays of one part. A training step of dcgan28 takes a third longer with 24 MiB than with
# 48 or 100 MiB, which are equal.
PART_BYTES = 64 * 2**20


def materialized(function: Callable, *arguments):
    """Return function(*arguments), written to memory once instead of recomputed for every use.

    XLA on CPU fuses element-wise operations into each of their uses: a transform with n * n outputs then reads and pads
    its input n * n times, 2 to 5 times slower. `lax.optimization_barrier` is removed before that fusion; a call that
    must not be inlined is not.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def num_parts(batch: int, bytes_per_image: int) -> int:
    """Return the smallest number of equal parts of a batch of which each takes at most `PART_BYTES` or is one image."""
    for parts in range(1, batch):
        if batch % parts == 0 and batch // parts * bytes_per_image <= PART_BYTES:
            return parts
    return batch


def _part(array: jax.Array, parts: int, index) -> jax.Array:
    """Return images index, index + parts, ...: every device has a share of them, so a sharded batch is not moved."""
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return lax.dynamic_index_in_dim(split, index, axis=1, keepdims=False)


def map_parts(function: Callable, array: jax.Array, parts: int) -> jax.Array:
    """Apply `function`, which keeps the length of the leading axis, to `array` in `parts` parts of that axis."""
    if parts == 1:
        return function(array)
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((array.shape[0] // parts, *array.shape[1:]), array.dtype))
    out = jnp.zeros((shape.shape[0], parts, *shape.shape[1:]), shape.dtype)

    def body(index, out):
        return lax.dynamic_update_index_in_dim(out, function(_part(array, parts, index)), index, axis=1)

    out = lax.fori_loop(0, parts, body, out)
    return out.reshape(-1, *out.shape[2:])


def sum_parts(function: Callable, arrays: tuple[jax.Array, ...], parts: int):
    """Sum function(*arrays), a pytree, over `parts` parts of the leading axis of the arrays."""
    if parts == 1:
        return function(*arrays)

    def part(index):
        return function(*(_part(array, parts, index) for array in arrays))

    return lax.fori_loop(1, parts, lambda index, total: jax.tree.map(jnp.add, total, part(index)), part(0))
