"""What keeps XLA on CPU close to the machine: arrays that are really made, and a large batch done in parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

# What one part's intermediate arrays may take. Measured: at 24 MiB a step of dcgan28 took a third longer than at 48 or
# 100, which are alike.
PART_BYTES = 64 * 2**20


def materialized(function: Callable, *arguments):
    """function(*arguments), whose results are written to memory once instead of being computed anew by every reader.

    XLA on CPU fuses element-wise operations into each of their readers: a transform of n*n outputs then reads and
    pads its input n*n times, 2 to 5 times slower than in two steps. `lax.optimization_barrier` is gone before it
    fuses; a call that may not be inlined stays.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def parts_of(batch: int, bytes_per_image: int) -> int:
    """Into how many equal parts to split a batch so that each takes at most `PART_BYTES`, or is one image."""
    fits = lambda n: batch // n * bytes_per_image <= PART_BYTES or n == batch
    return next(n for n in range(1, batch + 1) if batch % n == 0 and fits(n))


def _part(array: jax.Array, parts: int, index) -> jax.Array:
    """Images index, index + parts, ...: the leading axis keeps the devices' order, so a sharded batch stays there."""
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return lax.dynamic_index_in_dim(split, index, axis=1, keepdims=False)


def map_parts(function: Callable, array: jax.Array, parts: int) -> jax.Array:
    """function over the leading axis of `array`, `parts` times; it keeps the length of that axis."""
    if parts == 1:
        return function(array)
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((array.shape[0] // parts, *array.shape[1:]), array.dtype))
    out = jnp.zeros((shape.shape[0], parts, *shape.shape[1:]), shape.dtype)

    def body(index, out):
        return lax.dynamic_update_index_in_dim(out, function(_part(array, parts, index)), index, axis=1)

    out = lax.fori_loop(0, parts, body, out)
    return out.reshape(-1, *out.shape[2:])


def sum_parts(function: Callable, arrays: tuple[jax.Array, ...], parts: int):
    """The sum of function(*arrays), a pytree, over `parts` parts of the arrays' leading axis."""
    part = lambda index: function(*(_part(array, parts, index) for array in arrays))
    if parts == 1:
        return function(*arrays)
    return lax.fori_loop(1, parts, lambda index, total: jax.tree.map(jnp.add, total, part(index)), part(0))
