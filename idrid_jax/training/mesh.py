"""Devices -> mesh, shardings, and host batches -> global arrays."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from idrid_jax.errors import UserError


def make_mesh(data: int = -1) -> Mesh:
    """A mesh of `data` devices along the axis "data"; -1 takes all. BatchNorm is then over the global batch.

    Raises UserError when there are fewer devices.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise UserError(f"config.mesh.data = {data}: {len(devices)} devices are there; take -1 for all of them")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same number of images."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(
            f"config.batch_size = {batch_size} is not divisible by {mesh.size} devices: "
            f"take a multiple of {mesh.size}, or fewer devices with config.mesh.data"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_global(local: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's share of a batch, [B / processes, ...] -> the global [B, ...], split over the devices."""
    return jax.make_array_from_process_local_data(split_batch(mesh), local)
