"""Devices -> mesh, shardings, and host batches -> global arrays.

A mesh has two axes. "data" splits the batch; "rows" splits the rows of each image, with the halo exchange that
convolutions need inserted by the compiler, for images of which one alone is too much for a device. BatchNorm is over
the global batch and the whole image on any mesh: how many devices there are changes no result.
"""

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from idrid_jax.errors import UserError
from idrid_jax.models.layers import MIN_ROWS_PER_DEVICE

DATA, ROWS = "data", "rows"
LEAST_SPLIT = 2**14  # values: smaller arrays stay whole, as gathering them costs a message each and saves nothing


def make_mesh(data: int | str = "auto", rows: int = 1, *, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` times `rows` devices; data = "auto" takes all. Those that split an image are neighbours.

    devices: to choose from (None: those of this run).
    Raises UserError when there are fewer devices, or they cannot be laid out so.
    """
    given = jax.devices() if devices is None else devices
    there = f"{len(given)} device{'s are' if len(given) > 1 else ' is'} there"
    if not 1 <= rows <= len(given):
        raise UserError(f"config.mesh.rows = {rows}: {there}; take from 1 to {len(given)}")
    if data == "auto" and len(given) % rows:
        raise UserError(
            f"config.mesh.rows = {rows}: {there}, which it does not divide; take a divisor, or set mesh.data"
        )
    count = len(given) // rows if data == "auto" else data
    if count < 1 or count * rows > len(given):
        by_rows = f", and mesh.rows = {rows} takes as many for each" if rows > 1 else ""
        raise UserError(f"config.mesh.data = {data}: {there}{by_rows}; auto takes all of them")
    if devices is None and jax.process_count() > 1:
        if count * rows != len(given):
            raise UserError(
                f"config.mesh = {count} x {rows} devices: {there} over {jax.process_count()} processes, and each "
                "process must take part with all of its own; set mesh.data to auto"
            )
        if jax.local_device_count() % rows:
            raise UserError(
                f"config.mesh.rows = {rows}: a process has {jax.local_device_count()} devices, and the rows of an "
                "image stay within a process; take a divisor"
            )
    axes = dict(axis_names=(DATA, ROWS), axis_types=(AxisType.Auto,) * 2)
    if rows == 1:
        return jax.make_mesh((count, 1), devices=given[:count], **axes)
    # By process: jax.make_mesh lays rows over processes, and refuses to on some TPU slices
    ordered = sorted(given, key=lambda device: (device.process_index, device.id))[: count * rows]
    layout = np.empty(count * rows, object)
    layout[:] = ordered
    return Mesh(layout.reshape(count, rows), **axes)


def of_config(config: ml_collections.ConfigDict, size: int, *, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` for images of `size` pixels a side, of `devices` or of this run's. Raises UserError
    where they do not fit together."""
    mesh = make_mesh(config.mesh.data, config.mesh.rows, devices=devices)
    check(config.batch_size, size, **mesh.shape, accumulate=config.accumulate)
    return mesh


def check(batch_size: int, size: int, data: int, rows: int, accumulate: int = 1) -> None:
    """Raises UserError unless every device of a mesh gets the same number of images of `size` pixels, in each of the
    micro-batches that a batch is done in, and of rows of each."""
    if batch_size < 1 or batch_size % data:
        raise UserError(
            f"config.batch_size = {batch_size} is not divisible by {data} devices: "
            f"take a multiple of {data}, or fewer devices with config.mesh.data"
        )
    if batch_size // data % accumulate:
        raise UserError(
            f"config.accumulate = {accumulate}: config.batch_size = {batch_size} over {data} "
            f"device{'s' if data > 1 else ''} is {batch_size // data} images for each, which cannot be parted so: take "
            f"a divisor of {batch_size // data}, or a batch that is a multiple of {data * accumulate}"
        )
    if size % rows or size // rows < MIN_ROWS_PER_DEVICE:
        raise UserError(
            f"config.mesh.rows = {rows}: an image has {size} rows, and each device takes as many of them, "
            f"{MIN_ROWS_PER_DEVICE} or more: take a divisor up to {size // MIN_ROWS_PER_DEVICE}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def everywhere(value: np.ndarray, mesh: Mesh) -> jax.Array:
    """What every process has alike, whole on each device."""
    return jax.make_array_from_callback(value.shape, replicated(mesh), lambda _: value)


def split_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def split_images(mesh: Mesh) -> NamedSharding:
    """Of images [B, R, R, C]: the batch over the devices, and the rows where the mesh splits them."""
    return NamedSharding(mesh, PartitionSpec(DATA, ROWS))


def stacked(sharding: NamedSharding) -> NamedSharding:
    """Of several such arrays along a new leading axis, which is not split."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def split_arrays(shapes, mesh: Mesh):
    """For a tree of arrays or shapes, a tree of shardings that leaves each device a part of every large one (fully
    sharded data parallelism, as ZeRO: Rajbhandari et al. 2020): the longest axis that those along "data" divide."""
    devices = mesh.shape[DATA]

    def of(leaf):
        fits = [axis for axis, length in enumerate(leaf.shape) if length % devices == 0]
        if leaf.size < LEAST_SPLIT or not fits:
            return replicated(mesh)
        axis = max(fits, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))

    return jax.tree.map(of, shapes)


def to_global(local: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's share of batches of images or numbers, [steps, B / processes, ...] -> global [steps, B, ...]."""
    sharding = split_images(mesh) if local.ndim == 5 else split_batch(mesh)
    return jax.make_array_from_process_local_data(stacked(sharding), local)
