"""Grades that are one class to the networks: "0 1+2 3+4" -> which class each grade is of."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError


def classes(pools: str) -> tuple[int, ...]:
    """`config.data.merge_classes` -> the class of each grade: the lowest grade of its pool. Each its own where it is empty.

    Grades of a pool are joined by +, pools parted by blanks. Raises UserError unless each grade is there exactly once.
    """
    if not pools.strip():
        return tuple(range(len(GRADES)))
    members = [pool.split("+") for pool in pools.split()]
    every, named = list(map(str, range(len(GRADES)))), [grade for pool in members for grade in pool]
    wrong = [f"{grade!r} is no grade" for grade in named if grade not in every]
    wrong += [f"{grade} is there {named.count(grade)} times" for grade in every if named.count(grade) != 1]
    if wrong:
        raise UserError(
            f"config.data.merge_classes = {pools!r}: {wrong[0]}; name each grade, 0 to 4, exactly once, such as '0 1+2 3+4'"
        )
    return tuple(int(min(pool)) for grade in every for pool in members if grade in pool)


def check_enough(grades: np.ndarray, pools: str, least: int, network: str) -> None:
    """Raises UserError where the training photographs, of grades int32 [N], are fewer than `least` of a class: a
    conditional network would learn those by heart."""
    of = classes(pools)
    counts = np.bincount(np.asarray(of)[grades], minlength=len(GRADES))
    for one in sorted(set(of)):
        if counts[one] < least:
            names = " and ".join(name for name, other in zip(GRADES, of) if other == one)
            raise UserError(
                f"config.network = {network!r} would learn {names} from {counts[one]} training photographs, fewer than "
                f"config.data.min_images_per_class = {least}: pool it with another grade, such as "
                f"--config.data.merge_classes={_with_neighbour(of, one)!r}, or lower that"
            )


def _with_neighbour(of: Sequence[int], one: int) -> str:
    """The pools, of which one has been joined with the next, the last with the one before."""
    pools = ["+".join(str(grade) for grade, other in enumerate(of) if other == each) for each in sorted(set(of))]
    at = max(0, min(sorted(set(of)).index(one), len(pools) - 2))
    return " ".join([*pools[:at], "+".join(pools[at : at + 2]), *pools[at + 2 :]])
