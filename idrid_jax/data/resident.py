"""Way in 2: the whole split as uint8 in device memory, each batch gathered inside the step, so that no step waits for
data."""

import jax
import numpy as np

from idrid_jax.data.order import Order


def put(images: np.ndarray, grades: np.ndarray, sharding: jax.sharding.Sharding) -> tuple[jax.Array, jax.Array]:
    """uint8 [N, R, R, C] and int32 [N] -> the same on the devices, whole on each under a replicated sharding."""
    return jax.device_put(np.asarray(images), sharding), jax.device_put(np.asarray(grades), sharding)


def batch(
    order: Order, images: jax.Array, grades: jax.Array, step: jax.Array, sharding: jax.sharding.Sharding
) -> tuple[jax.Array, jax.Array]:
    """Batch `step`, split over the devices: uint8 [B, R, R, C], int32 [B]. Pure; called inside the jitted step."""
    index = jax.lax.with_sharding_constraint(order(step), sharding)
    return images[index], grades[index]
