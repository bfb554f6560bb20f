"""The order of photographs: the indices of batch k as a function of (seed, step), at a cost that does not grow with k.

Both input pipelines ask `BatchOrder`, so they yield the same batches, and no iterator has to be saved in a checkpoint.
Positions count images from the start of the run and are int32: 2^31 images are more than two million kimg.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError

SAMPLINGS = ("natural", "balanced", "tempered")
PERIOD = 240  # positions after which tempered sampling repeats its grades; divisible by 5, so equal shares are exact


class BatchOrder:
    """The order in which one split, or one process's share of it, is sampled.

    natural: each epoch is a permutation of all photographs, so grades are as frequent as in the split.
    balanced: grades take turns; within a grade, each epoch is a permutation of its photographs.
    tempered: as balanced, but a grade's frequency is proportional to its number of photographs to the power of
      1/temperature: natural frequencies at 1, nearly balanced ones at a high temperature.
    """

    def __init__(
        self, grades: np.ndarray, *, seed: int, batch_size: int, sampling: str, temperature: float | None = None
    ):
        """Prepare the order of photographs with `grades`, int32 [N]. Only "tempered" uses `temperature`, above 0.

        Raises UserError for an unknown sampling, an empty split, or, unless sampling is natural, a grade without
        photographs.
        """
        if sampling not in SAMPLINGS:
            raise UserError(f"config.data.sampling = {sampling!r}: choose one of {', '.join(SAMPLINGS)}")
        if not len(grades):
            raise UserError("the training split has no photograph: prepare a release with training photographs")
        # Photographs form groups: one for natural sampling, otherwise one per grade. `_period` lists which group each
        # position of a period belongs to.
        if sampling == "natural":
            self._groups = [np.arange(len(grades), dtype=np.int32)]
            self._period = np.zeros(1, np.int32)
        else:
            self._groups = [np.flatnonzero(grades == grade).astype(np.int32) for grade in range(len(GRADES))]
            missing = [name for name, group in zip(GRADES, self._groups) if not len(group)]
            if missing:
                raise UserError(
                    f"config.data.sampling = {sampling!r}, but no photograph of grade {', '.join(missing)} is in this "
                    "share of the training split: choose 'natural', fewer processes, or a release that has one"
                )
            self._period = np.arange(len(GRADES), dtype=np.int32)
            if sampling == "tempered":
                self._period = interleave(grade_shares([len(group) for group in self._groups], temperature))
        # The update of step 3554 (0x0DE2) has the same key, but derives other random numbers from it.
        self._key = jax.random.fold_in(jax.random.key(seed), 0x0DE2)
        self._batch_size = batch_size

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Return the indices of batch `step` into the split: int32 [B]. Pure, inside jit or outside."""
        position = step * self._batch_size + jnp.arange(self._batch_size, dtype=jnp.int32)
        period, place = position // len(self._period), position % len(self._period)
        group_of_position = jnp.asarray(self._period)[place]
        index = jnp.zeros_like(position)
        for number, group in enumerate(self._groups):
            is_in_group = self._period == number
            count_before = jnp.asarray((np.cumsum(is_in_group) - is_in_group).astype(np.int32))
            position_in_group = period * int(is_in_group.sum()) + count_before[place]  # never decreases within a batch
            candidates = self._permuted(jax.random.fold_in(self._key, number), position_in_group, group)
            index = jnp.where(group_of_position == number, candidates, index)
        return index

    def _permuted(self, key: jax.Array, position: jax.Array, group: np.ndarray) -> jax.Array:
        """Return the photograph at each position of a group; epoch e is the permutation of fold_in(key, e)."""
        n = len(group)
        epoch = position // n
        epochs = epoch[0] + jnp.arange((self._batch_size - 1) // n + 2)  # all epochs that a batch can reach
        permute = lambda e: jax.random.permutation(jax.random.fold_in(key, e), jnp.asarray(group))
        return jax.vmap(permute)(epochs)[epoch - epoch[0], position % n]


def grade_shares(counts: Sequence[int], temperature: float) -> np.ndarray:
    """Return how many of PERIOD positions each grade gets, int [G], each at least 1, for `counts` photographs (> 0).

    Shares are proportional to counts ** (1 / temperature), rounded by largest remainders. Source: Arivazhagan et al.,
    "Massively Multilingual Neural Machine Translation in the Wild", arXiv:1907.05019, section 4.2 (there, for rare
    languages).
    """
    weights = (np.asarray(counts, np.float64) / max(counts)) ** (1 / temperature)
    exact = weights / weights.sum() * PERIOD
    shares = exact.astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: PERIOD - shares.sum()]] += 1
    empty = shares == 0
    shares[np.argmax(shares)] -= empty.sum()
    return shares + empty


def interleave(shares: np.ndarray) -> np.ndarray:
    """Spread shares int [G] evenly over a period: which of 0..G-1 has each position, int32 [sum of shares].

    The j-th of a grade's n positions has the target (j + 1/2) / n of the period; all are sorted by their targets.
    """
    grades = np.repeat(np.arange(len(shares), dtype=np.int32), shares)
    targets = np.concatenate([(np.arange(n) + 0.5) / n for n in shares])
    return grades[np.argsort(targets, kind="stable")]
