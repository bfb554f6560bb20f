"""Way in 2: the whole split as uint8 in device memory, each batch gathered inside the step, so that no step waits for
data.

Where the split fits each device it lies whole on each; where only all devices together hold it, each holds a part, and
a batch is put together by a reduce-scatter of its uint8 pixels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idrid_jax.data.pipeline.batch_order import Order

Split = tuple[jax.Array, jax.Array]  # images uint8 [N or more, R, R, C], grades int32 [N]


def put(images: np.ndarray, grades: np.ndarray, mesh: Mesh, *, parts: bool = False) -> Split:
    """uint8 [N, R, R, C] and int32 [N] -> the same on the devices. `mesh` has the axes "data" and "rows".

    parts: each device gets a part of the images only, the last ones filled up with black. Every process reads of
    `images` what its own devices hold.
    """

    def read(index):
        first, last, _ = index[0].indices(to.shape[0])
        some = np.asarray(images[first : min(last, len(images)), *index[1:]])
        missing = last - first - len(some)
        return np.concatenate([some, np.zeros((missing, *some.shape[1:]), np.uint8)]) if missing else some

    to, of_grades = abstract(images.shape, mesh, parts=parts)
    grades = np.asarray(grades, np.int32)
    return (
        jax.make_array_from_callback(to.shape, to.sharding, read),
        jax.make_array_from_callback(of_grades.shape, of_grades.sharding, lambda index: grades[index]),
    )


def abstract(shape: tuple[int, ...], mesh: Mesh, *, parts: bool) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """What `put` returns for images of `shape` [N, R, R, C], as shapes with their shardings."""
    shares = mesh.shape["data"] if parts else 1
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data", "rows")) if parts else whole
    images = jax.ShapeDtypeStruct((-(-shape[0] // shares) * shares, *shape[1:]), jnp.uint8, sharding=split)
    return images, jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=whole)


def bytes_in_parts(shape: tuple[int, ...], batch_size: int, mesh: Mesh) -> int:
    """What each device gives for images of `shape` [N, R, R, C] in parts: its own, and while a batch is put together
    its rows of all of that."""
    images = abstract(shape, mesh, parts=True)[0]
    count, *of_each = images.sharding.shard_shape(images.shape)
    return (count + batch_size) * math.prod(of_each)


def batch(
    order: Order, images: jax.Array, grades: jax.Array, step: jax.Array, mesh: Mesh, *, parts: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Batch `step`, split over the devices: uint8 [B, R, R, C], int32 [B]. Pure; called inside the jitted step."""
    over = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    index = order(step)
    if not parts:
        index = jax.lax.with_sharding_constraint(index, over("data"))
        return jax.lax.with_sharding_constraint(images[index], over("data", "rows")), grades[index]
    return _gather(mesh)(images, index), jax.lax.with_sharding_constraint(grades[index], over("data"))


@functools.cache
def _gather(mesh: Mesh):
    """images in parts, index int32 [B] -> uint8 [B, R, R, C]: each device gives the photographs that it holds, and 0
    for others, so that the sum over devices is the batch."""

    def local(images, index):
        mine = index - jax.lax.axis_index("data") * len(images)
        here = (mine >= 0) & (mine < len(images))
        found = jnp.where(here[:, None, None, None], images[jnp.clip(mine, 0, len(images) - 1)], 0)
        return jax.lax.psum_scatter(found, "data", scatter_dimension=0, tiled=True)

    split = PartitionSpec("data", "rows")
    return jax.shard_map(local, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
