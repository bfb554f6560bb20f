"""Which photographs make up batch k: a function of (seed, step) alone, at a cost that does not grow with k.

Both ways in ask here, so that `stream` and `resident` give the same batches and resume needs no iterator in the
checkpoint. Positions count images from the start of the run and are int32: 2^31 images are more than two million kimg.
"""

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError

SAMPLINGS = ("natural", "balanced")


class Order:
    """The order of one split (or of one process's share of it).

    natural: every epoch is a permutation of all photographs, so grades come as often as they are.
    balanced: grades take turns, and within a grade every epoch is a permutation of its photographs.
    """

    def __init__(self, grades: np.ndarray, *, seed: int, batch_size: int, sampling: str):
        """grades int32 [N]. Raises UserError for an empty split, or a grade that balanced sampling would miss."""
        if sampling not in SAMPLINGS:
            raise UserError(f"config.data.sampling = {sampling!r}: take one of {', '.join(SAMPLINGS)}")
        if not len(grades):
            raise UserError("the training split holds no photograph: prepare a release with training images")
        if sampling == "natural":
            self._members = [np.arange(len(grades), dtype=np.int32)]
        else:
            self._members = [np.flatnonzero(grades == grade).astype(np.int32) for grade in range(len(GRADES))]
            missing = [name for name, members in zip(GRADES, self._members) if not len(members)]
            if missing:
                raise UserError(
                    f"config.data.sampling = 'balanced', but no photograph of grade {', '.join(missing)} is in this "
                    "share of the training split: take 'natural', fewer processes, or a release that has one"
                )
        self._key = jax.random.fold_in(jax.random.key(seed), 0x0DE2)  # apart from the keys of init and of the steps
        self._batch_size = batch_size

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Step int32 [] -> int32 [B], indices into the split. Pure: call it inside jit or out."""
        position = step * self._batch_size + jnp.arange(self._batch_size, dtype=jnp.int32)
        turns = len(self._members)
        index = jnp.zeros_like(position)
        for turn, members in enumerate(self._members):
            walked = self._walk(jax.random.fold_in(self._key, turn), position // turns, members)
            index = jnp.where(position % turns == turn, walked, index)
        return index

    def _walk(self, key, position, members):
        """Position in this walk -> photograph; epoch e walks the permutation of fold_in(key, e)."""
        n = len(members)
        epoch = position // n
        epochs = epoch[0] + jnp.arange((self._batch_size - 1) // n + 2)  # as many as a batch can touch
        permute = lambda e: jax.random.permutation(jax.random.fold_in(key, e), jnp.asarray(members))
        return jax.vmap(permute)(epochs)[epoch - epoch[0], position % n]
