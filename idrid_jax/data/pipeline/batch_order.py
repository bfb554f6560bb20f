"""Which photographs make up batch k: a function of (seed, step) alone, at a cost that does not grow with k.

Both ways in ask here, so that `stream` and `resident` give the same batches and resume needs no iterator in the
checkpoint. Positions count images from the start of the run and are int32: 2^31 images are more than two million kimg.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError

SAMPLINGS = ("natural", "balanced", "tempered")
TABLE = 240  # positions after which tempered grades repeat: any number of grades divides it, so that equal stays equal


class Order:
    """The order of one split (or of one process's share of it).

    natural: every epoch is a permutation of all photographs, so grades come as often as they are.
    balanced: grades take turns, and within a grade every epoch is a permutation of its photographs.
    tempered: likewise, but each grade in proportion to its number of photographs to the power of 1/temperature: at 1
      as they are, far above it as balanced.
    """

    def __init__(
        self, grades: np.ndarray, *, seed: int, batch_size: int, sampling: str, temperature: float | None = None
    ):
        """grades int32 [N]. temperature: of "tempered", above 0. Raises UserError for an empty split, or a grade that
        balanced or tempered sampling would miss."""
        if sampling not in SAMPLINGS:
            raise UserError(f"config.data.sampling = {sampling!r}: take one of {', '.join(SAMPLINGS)}")
        if not len(grades):
            raise UserError("the training split holds no photograph: prepare a release with training images")
        if sampling == "natural":
            self._members = [np.arange(len(grades), dtype=np.int32)]
            self._turns = np.zeros(1, np.int32)
        else:
            self._members = [np.flatnonzero(grades == grade).astype(np.int32) for grade in range(len(GRADES))]
            missing = [name for name, members in zip(GRADES, self._members) if not len(members)]
            if missing:
                raise UserError(
                    f"config.data.sampling = {sampling!r}, but no photograph of grade {', '.join(missing)} is in this "
                    "share of the training split: take 'natural', fewer processes, or a release that has one"
                )
            self._turns = np.arange(len(GRADES), dtype=np.int32)
            if sampling == "tempered":
                self._turns = turns(shares([len(members) for members in self._members], temperature))
        # step 3554 has the same key, of which it draws other things
        self._key = jax.random.fold_in(jax.random.key(seed), 0x0DE2)
        self._batch_size = batch_size

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Step int32 [] -> int32 [B], indices into the split. Pure: call it inside jit or out."""
        position = step * self._batch_size + jnp.arange(self._batch_size, dtype=jnp.int32)
        lap, place = position // len(self._turns), position % len(self._turns)
        whose = jnp.asarray(self._turns)[place]
        index = jnp.zeros_like(position)
        for turn, members in enumerate(self._members):
            his = self._turns == turn
            before = jnp.asarray((np.cumsum(his) - his).astype(np.int32))
            number = lap * int(his.sum()) + before[place]  # of his walk; it only grows along the batch
            walked = self._walk(jax.random.fold_in(self._key, turn), number, members)
            index = jnp.where(whose == turn, walked, index)
        return index

    def _walk(self, key, position, members):
        """Position in this walk -> photograph; epoch e walks the permutation of fold_in(key, e)."""
        n = len(members)
        epoch = position // n
        epochs = epoch[0] + jnp.arange((self._batch_size - 1) // n + 2)  # as many as a batch can touch
        permute = lambda e: jax.random.permutation(jax.random.fold_in(key, e), jnp.asarray(members))
        return jax.vmap(permute)(epochs)[epoch - epoch[0], position % n]


def shares(counts: Sequence[int], temperature: float) -> np.ndarray:
    """Photographs of each grade [G], all above 0 -> how many of TABLE positions each gets: int [G], at least 1.

    In proportion to counts ** (1 / temperature), rounded by largest remainders. Source: Arivazhagan et al., "Massively
    multilingual neural machine translation in the wild", arXiv:1907.05019, section 4.2, where it is languages that are
    rare.
    """
    weights = (np.asarray(counts, np.float64) / max(counts)) ** (1 / temperature)
    exact = weights / weights.sum() * TABLE
    whole = exact.astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: TABLE - whole.sum()]] += 1
    lacking = whole == 0
    whole[np.argmax(whole)] -= lacking.sum()
    return whole + lacking


def turns(shares: np.ndarray) -> np.ndarray:
    """shares int [G] -> which of 0..G-1 has each position, int32 [sum of shares], each spread evenly over them.

    The j-th of a grade's n wants to lie at (j + 1/2) / n, and all are put in that order.
    """
    whose = np.repeat(np.arange(len(shares), dtype=np.int32), shares)
    wanted = np.concatenate([(np.arange(n) + 0.5) / n for n in shares])
    return whose[np.argsort(wanted, kind="stable")]
