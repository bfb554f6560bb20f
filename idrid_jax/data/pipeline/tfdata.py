"""Way in 1: tf.data over the cache on disk, for splits that do not fit the devices and for many hosts.

Each process reads its own share and yields its part of the global batch. The order is computed from (seed, step), so a
stream that begins at step k is the tail of one that began at 0.
"""

from collections.abc import Iterator

import jax
import numpy as np

from idrid_jax.data.pipeline.batch_order import Order
from idrid_jax.data.tensorflow import import_tensorflow
from idrid_jax.errors import UserError


def share(n: int, process: int, processes: int) -> slice:
    """The photographs of split 0..n-1 that this process reads, as `tfds.split_for_jax_process` deals them out: shares
    are disjoint, cover the split, and the first ones have one more where it does not divide."""
    each, more = divmod(n, processes)
    start = each * process + min(process, more)
    return slice(start, start + each + (process < more))


def check_shares(grades: np.ndarray, sampling: str, processes: int, temperature: float | None = None) -> None:
    """Raises UserError where one of the processes, no matter which, would get a share that `Order` refuses: on all."""
    for process in range(processes) if processes > 1 else ():
        mine = np.asarray(grades)[share(len(grades), process, processes)]
        try:
            Order(mine, seed=0, batch_size=1, sampling=sampling, temperature=temperature)
        except UserError as error:
            raise UserError(f"process {process} of {processes}: {error}; 'resident' has no shares") from error


def batches(
    images: np.ndarray,
    grades: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    sampling: str,
    first_step: int,
    temperature: float | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 [N, R, R, C] (may be memory-mapped) and int32 [N] -> endless host batches uint8 [b, R, R, C], int32 [b],
    from batch `first_step` on.

    b = batch_size / processes. Raises UserError where `Order` does.
    """
    check_shares(grades, sampling, processes, temperature)
    mine = share(len(grades), process, processes)
    images, grades = images[mine], np.asarray(grades[mine], np.int32)
    # one process: the very batches of the resident way; several: each its own walk
    order = Order(
        grades,
        seed=seed if processes == 1 else seed * processes + process,
        batch_size=batch_size // processes,
        sampling=sampling,
        temperature=temperature,
    )
    return _read(images, grades, order, first_step)


def _read(images, grades, order, first_step):
    tf = import_tensorflow()
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "config.data.pipeline = 'tfdata': JAX has no CPU backend to compute the order with; add cpu to "
            f"JAX_PLATFORMS, or take 'resident' ({str(error).splitlines()[0]})"
        ) from error
    indices_of = jax.jit(order)

    def read(step):
        with jax.default_device(cpu):
            index = np.asarray(indices_of(np.int32(step)))
        return images[index], grades[index]

    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int32).max)
    batches = steps.map(
        lambda step: tf.numpy_function(read, [step], (tf.uint8, tf.int32)), num_parallel_calls=2, deterministic=True
    )
    return batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
