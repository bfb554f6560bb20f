"""The tf.data pipeline: host batches read from the cache on disk, for splits that do not fit in device memory.

Each process reads its own share of the split and yields its part of the global batch. The order is computed from
(seed, step), so an iterator that starts at step k yields what one from 0 yields after k batches.

Each batch is one call of `tf.numpy_function`, which computes the order with JAX and reads the rows from the
memory-mapped cache: the images are already decoded, so reading is a copy, and the order is the one of the resident
pipeline. tf.data contributes the threads and the prefetching. A pipeline of tf.data's own operations is planned.
"""

from collections.abc import Iterator

import jax
import numpy as np

from idrid_jax.data.cache import Split
from idrid_jax.data.laterality import canonicalize_laterality
from idrid_jax.data.pipeline.batch_order import BatchOrder
from idrid_jax.data.tensorflow import import_tensorflow
from idrid_jax.errors import UserError


def share(n: int, process: int, processes: int) -> slice:
    """Return the photographs of 0..n-1 that a process reads, as `tfds.split_for_jax_process` assigns them: shares are
    disjoint and cover the split; if it does not divide, the first ones have one photograph more."""
    size, remainder = divmod(n, processes)
    start = size * process + min(process, remainder)
    return slice(start, start + size + (process < remainder))


def check_shares(grades: np.ndarray, sampling: str, processes: int, temperature: float | None = None) -> None:
    """Raise UserError if any process would get a share that `BatchOrder` refuses; the same on all processes."""
    for process in range(processes) if processes > 1 else ():
        own = np.asarray(grades)[share(len(grades), process, processes)]
        try:
            BatchOrder(own, seed=0, batch_size=1, sampling=sampling, temperature=temperature)
        except UserError as error:
            raise UserError(f"process {process} of {processes}: {error}; 'resident' has no shares") from error


def batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    sampling: str,
    first_step: int,
    temperature: float | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield this process's part of each batch from `first_step` on, without end: uint8 [b, R, R, C], int32 [b].

    b = batch_size / processes. Left eyes are mirrored if the split says so. Raises UserError as `BatchOrder` does.
    """
    check_shares(split.grades, sampling, processes, temperature)
    own = share(len(split), process, processes)
    order = BatchOrder(
        split.grades[own],
        # One process yields the batches of the resident pipeline; of several, each has an order of its own.
        seed=seed if processes == 1 else seed * processes + process,
        batch_size=batch_size // processes,
        sampling=sampling,
        temperature=temperature,
    )
    return _read(split, order, own.start, first_step)


def _read(split: Split, order: BatchOrder, offset: int, first_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    tf = import_tensorflow()
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "config.data.pipeline = 'tfdata': JAX has no CPU backend to compute the order with; add cpu to "
            f"JAX_PLATFORMS, or choose 'resident' ({str(error).splitlines()[0]})"
        ) from error
    indices_of = jax.jit(order)

    def read(step):
        with jax.default_device(cpu):
            index = offset + np.asarray(indices_of(np.int32(step)))
        images = np.asarray(split.images[index])
        if split.is_left_eye is not None:
            images = canonicalize_laterality(images, split.is_left_eye[index])
        return images, np.asarray(split.grades[index], np.int32)

    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int32).max)
    read_op = lambda step: tf.numpy_function(read, [step], (tf.uint8, tf.int32))
    dataset = steps.map(read_op, num_parallel_calls=2, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
