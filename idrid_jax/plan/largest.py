"""The largest batch that fits, by few compilations."""

import dataclasses
from collections.abc import Callable

from idrid_jax.plan.compile import Facts

TRIES = 5  # compilations, beside the first
FULL = 0.9  # of the memory taken is close enough


@dataclasses.dataclass(frozen=True)
class Largest:
    """batch: the largest that was compiled and fits, 0 for none; refused: the smallest that was compiled and does not,
    0 for none. The truth lies between them."""

    batch: int
    refused: int


def search(need: Callable[[int], Facts], limit: int, *, start: int, step: int) -> Largest:
    """Looks for the largest multiple of `step` that fits `limit` bytes, beginning at `start`.

    need: what the compiler says of a batch; a step that it refuses, or that needs more than `limit`, does not fit.
    What a step needs grows in proportion to the batch above what is fixed, so a line through what is known says where
    the limit is met; the guess is compiled, and gives the next line. A compiler that sees the limit computes some
    activations again rather than refuse, so it may take more than the line says: that is why a guess which fits but
    leaves room is followed by another.
    """
    told: dict[int, tuple[bool, int | None]] = {}

    def ask(batch: int) -> None:
        facts = need(batch)
        told[batch] = facts.fits and (facts.needed is None or facts.needed <= limit), facts.needed
        if facts.memory and len(told) == 1:  # what would be left of it without images, on the same line
            told[0] = True, facts.needed - facts.memory["temporaries"]

    ask(start)
    for _ in range(TRIES):
        fits = max((batch for batch, (ok, _) in told.items() if ok), default=0)
        refused = min((batch for batch, (ok, _) in told.items() if not ok), default=0)
        if fits and (told[fits][1] or 0) >= FULL * limit:
            break
        guess = _guess(told, limit, step)
        if refused and guess >= refused:  # the line is too flat: halve what is open
            guess = (fits + refused) // 2 // step * step
        if guess <= fits:
            guess = (fits + refused) // 2 // step * step if refused else 2 * fits
        guess = _round(guess, step, fits)
        if guess < step or guess in told:
            break
        ask(guess)
    fitting = [batch for batch, (ok, _) in told.items() if ok]
    refusing = [batch for batch, (ok, _) in told.items() if not ok]
    return Largest(max(fitting, default=0), min(refusing, default=0))


def _guess(told, limit, step) -> int:
    """Where a line through the two known points nearest the limit meets it; through one point, twice or half of it."""
    points = [(batch, needed) for batch, (_, needed) in told.items() if needed is not None]
    points.sort(key=lambda point: abs(point[1] - limit))
    if len(points) < 2:
        batch = max(told)
        return 2 * batch if told[batch][0] else batch // 2 // step * step
    (low, low_bytes), (high, high_bytes) = sorted(points[:2])
    slope = (high_bytes - low_bytes) / (high - low)
    return int(low + (limit - low_bytes) / slope) // step * step if slope > 0 else 0


def _round(guess: int, step: int, fits: int) -> int:
    """Down to a multiple of eight steps where it is far above that: a compiler fills tiles of eight in any case."""
    coarse = guess // (8 * step) * (8 * step)
    return coarse if coarse >= 64 * step and coarse > fits else guess
