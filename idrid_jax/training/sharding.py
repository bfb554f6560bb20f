"""Devices -> mesh, shardings, and host batches -> global arrays.

A mesh has two axes. "data" splits the batch; "rows" splits the rows of each image, for images of which one alone is too
large for a device (the compiler inserts the halo exchange that convolutions need). BatchNorm is over the global batch
and the whole image on any mesh: the number of devices changes no result.
"""

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from idrid_jax.errors import UserError
from idrid_jax.models.layers import MIN_ROWS_PER_DEVICE

DATA, ROWS = "data", "rows"
MIN_SHARDED_SIZE = 2**14  # values: gathering a smaller array costs a message and saves nothing


def make_mesh(data: int | str = "auto", rows: int = 1, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh of `data` x `rows` devices; "auto" uses all. Devices that share an image are neighbors.

    devices: to choose from (None: those of this run).
    Raises UserError if there are fewer devices, or they cannot be arranged so.
    """
    available = jax.devices() if devices is None else devices
    count = f"{len(available)} device{'s are' if len(available) > 1 else ' is'} available"
    if not 1 <= rows <= len(available):
        raise UserError(f"config.mesh.rows = {rows}: {count}; choose 1 to {len(available)}")
    if data == "auto" and len(available) % rows:
        raise UserError(f"config.mesh.rows = {rows}: {count}, not a multiple; choose a divisor, or set mesh.data")
    columns = len(available) // rows if data == "auto" else data
    if columns < 1 or columns * rows > len(available):
        needed = f", and mesh.rows = {rows} needs {rows} for each" if rows > 1 else ""
        raise UserError(f"config.mesh.data = {data}: {count}{needed}; choose auto for all of them")
    if devices is None and jax.process_count() > 1:
        _check_processes(columns, rows, len(available))
    axes = dict(axis_names=(DATA, ROWS), axis_types=(AxisType.Auto,) * 2)
    if rows == 1:
        return jax.make_mesh((columns, 1), devices=available[:columns], **axes)
    # Sorted by process: jax.make_mesh spreads rows over processes, and refuses to on some TPU slices
    layout = np.empty(columns * rows, object)
    layout[:] = sorted(available, key=lambda device: (device.process_index, device.id))[: columns * rows]
    return Mesh(layout.reshape(columns, rows), **axes)


def _check_processes(columns: int, rows: int, devices: int) -> None:
    if columns * rows != devices:
        raise UserError(
            f"config.mesh = {columns} x {rows} devices: {devices} are available over {jax.process_count()} processes, "
            "and each process must use all of its own; set mesh.data to auto"
        )
    if jax.local_device_count() % rows:
        raise UserError(
            f"config.mesh.rows = {rows}: a process has {jax.local_device_count()} devices, and the rows of an image "
            "stay within a process; choose a divisor"
        )


def mesh_from_config(config: ml_collections.ConfigDict, size: int, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Return the mesh of `config.mesh` for images of `size` pixels per side, on `devices` or those of this run.

    Raises UserError if batch, image and devices do not fit together.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.rows, devices=devices)
    check_divisible(config.batch_size, size, **mesh.shape)
    return mesh


def check_divisible(batch_size: int, size: int, data: int, rows: int) -> None:
    """Raise UserError unless every device of a mesh gets equally many images, and equally many rows of each."""
    if batch_size < 1 or batch_size % data:
        raise UserError(
            f"config.batch_size = {batch_size} is not divisible by {data} devices: "
            f"choose a multiple of {data}, or fewer devices with config.mesh.data"
        )
    if size % rows or size // rows < MIN_ROWS_PER_DEVICE:
        raise UserError(
            f"config.mesh.rows = {rows}: an image has {size} rows, and each device needs an equal part of at least "
            f"{MIN_ROWS_PER_DEVICE}: choose a divisor up to {size // MIN_ROWS_PER_DEVICE}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that are whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def image_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of images [B, R, R, C]: the batch, and the rows if the mesh splits them."""
    return NamedSharding(mesh, PartitionSpec(DATA, ROWS))


def stacked(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of several such arrays along a new leading axis, which is not split."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def shard_arrays(shapes, mesh: Mesh):
    """Return a tree of shardings that splits every large array of a tree along its longest divisible axis.

    Fully sharded data parallelism, as ZeRO: Rajbhandari et al. 2020.
    """
    return jax.tree.map(lambda leaf: _longest_axis(leaf, mesh), shapes)


def _longest_axis(leaf, mesh):
    divisible = [axis for axis, length in enumerate(leaf.shape) if length % mesh.shape[DATA] == 0]
    if leaf.size < MIN_SHARDED_SIZE or not divisible:
        return replicated(mesh)
    axis = max(divisible, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def to_global(local: np.ndarray, mesh: Mesh) -> jax.Array:
    """Join the processes' shares of batches, [steps, B / processes, ...], to a global array [steps, B, ...]."""
    sharding = image_sharding(mesh) if local.ndim == 5 else batch_sharding(mesh)
    return jax.make_array_from_process_local_data(stacked(sharding), local)
