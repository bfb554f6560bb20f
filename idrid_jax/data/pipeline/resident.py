"""The resident pipeline: the whole split as uint8 in device memory; each batch is gathered inside the jitted step.

A split that fits each device is replicated. One that fits only all devices together is sharded over them, and a batch
is assembled by a reduce-scatter of its uint8 pixels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idrid_jax.data.cache import Split
from idrid_jax.data.laterality import canonicalize_laterality
from idrid_jax.data.pipeline.batch_order import BatchOrder


def put(split: Split, mesh: Mesh, *, sharded: bool = False) -> tuple[jax.Array, jax.Array]:
    """Copy a split to the devices: images uint8 [N, R, R, C], left eyes mirrored if it says so, and grades int32 [N].

    Args:
      split: each process reads only those of its images that its own devices hold.
      mesh: has the axes "data" and "rows".
      sharded: give each device a part of the images instead of all. N is then padded with black images to a multiple
        of the devices on "data".
    """
    images, grades = abstract(split.images.shape, mesh, sharded=sharded)
    labels = np.asarray(split.grades, np.int32)
    return (
        jax.make_array_from_callback(images.shape, images.sharding, functools.partial(_read, split, images.shape[0])),
        jax.make_array_from_callback(grades.shape, grades.sharding, lambda index: labels[index]),
    )


def _read(split: Split, padded: int, index: tuple[slice, ...]) -> np.ndarray:
    """Read one device's images; those from N to `padded` are black."""
    first, last, _ = index[0].indices(padded)
    rows = slice(first, min(last, len(split)))
    images = np.asarray(split.images[rows, *index[1:]])
    if split.is_left_eye is not None:
        images = canonicalize_laterality(images, split.is_left_eye[rows])
    missing = last - first - len(images)
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]) if missing else images


def abstract(shape: tuple[int, ...], mesh: Mesh, *, sharded: bool) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return shapes, dtypes and shardings of what `put` returns for images of `shape` [N, R, R, C]."""
    parts = mesh.shape["data"] if sharded else 1
    replicated = NamedSharding(mesh, PartitionSpec())
    sharding = NamedSharding(mesh, PartitionSpec("data", "rows")) if sharded else replicated
    images = jax.ShapeDtypeStruct((-(-shape[0] // parts) * parts, *shape[1:]), jnp.uint8, sharding=sharding)
    return images, jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=replicated)


def sharded_bytes(shape: tuple[int, ...], batch_size: int, mesh: Mesh) -> int:
    """Return the bytes per device that sharded images of `shape` [N, R, R, C] take: the device's own images and, while
    a batch is assembled, its rows of the whole batch."""
    images = abstract(shape, mesh, sharded=True)[0]
    count, *image = images.sharding.shard_shape(images.shape)
    return (count + batch_size) * math.prod(image)


def batch(
    order: BatchOrder, images: jax.Array, grades: jax.Array, step: jax.Array, mesh: Mesh, *, sharded: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Gather batch `step`, sharded over the devices: uint8 [B, R, R, C], int32 [B]. Pure; for use inside jit."""

    def over(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    index = order(step)
    if not sharded:
        index = jax.lax.with_sharding_constraint(index, over("data"))
        return jax.lax.with_sharding_constraint(images[index], over("data", "rows")), grades[index]
    return _gather(mesh)(images, index), jax.lax.with_sharding_constraint(grades[index], over("data"))


@functools.cache
def _gather(mesh: Mesh):
    """Return a function of sharded images and index int32 [B] that gives uint8 [B, R, R, C]: each device contributes
    the images that it holds and 0 for the others, and the sum over devices is the batch."""

    def local(images, index):
        here = index - jax.lax.axis_index("data") * len(images)
        is_here = (here >= 0) & (here < len(images))
        found = jnp.where(is_here[:, None, None, None], images[jnp.clip(here, 0, len(images) - 1)], 0)
        return jax.lax.psum_scatter(found, "data", scatter_dimension=0, tiled=True)

    spec = PartitionSpec("data", "rows")
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
