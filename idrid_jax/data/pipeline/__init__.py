"""Input pipelines: `resident` (the split in device memory) and `tfdata` (tf.data, a share per process).

Both keep one contract: the global batch is a function of (seed, step), computed by `BatchOrder`. So batch k costs the
same whatever k is, a resumed run needs no saved iterator, and on one process both pipelines yield the same batches. The
resident pipeline yields the same global batches on any number of devices and processes; with tfdata they also depend
on the number of processes, each of which samples its own share. Images are uint8 [B, R, R, C], grades int32 [B].
"""

from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from idrid_jax.data.cache import Split
from idrid_jax.data.pipeline import resident, tfdata
from idrid_jax.data.pipeline.batch_order import BatchOrder

__all__ = ["BatchOrder", "choose_pipeline", "host_batches", "is_sharded", "make_order", "resident", "tfdata"]


def choose_pipeline(config: ml_collections.ConfigDict, split: Split, mesh: jax.sharding.Mesh) -> str:
    """Return "resident" or "tfdata": `config.data.pipeline`, or if that is "auto", resident as long as the split takes
    no more than `config.data.resident_mib` of each device, whole or sharded."""
    if config.data.pipeline != "auto":
        return config.data.pipeline
    needed = split.images.nbytes
    if is_sharded(config, split, mesh):
        needed = resident.sharded_bytes(split.images.shape, config.batch_size, mesh)
    return "resident" if needed <= config.data.resident_mib * 2**20 else "tfdata"


def is_sharded(config: ml_collections.ConfigDict, split: Split, mesh: jax.sharding.Mesh) -> bool:
    """Whether a resident split is sharded over the devices, because it is larger than `config.data.resident_mib`."""
    return mesh.size > 1 and split.images.nbytes > config.data.resident_mib * 2**20


def make_order(config: ml_collections.ConfigDict, split: Split) -> BatchOrder:
    """Return the order of the resident pipeline. Raises UserError as `BatchOrder` does."""
    return BatchOrder(
        np.asarray(split.grades),
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.data.sampling,
        temperature=config.data.temperature,
    )


def host_batches(
    config: ml_collections.ConfigDict, split: Split, first_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield this process's part of each batch of the tf.data pipeline from `first_step` on: see `tfdata.batches`."""
    return tfdata.batches(
        split,
        seed=config.seed,
        batch_size=config.batch_size,
        sampling=config.data.sampling,
        temperature=config.data.temperature,
        first_step=first_step,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
