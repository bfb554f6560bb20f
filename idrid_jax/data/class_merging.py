"""Class merging: grades that a conditional network treats as one class, written as in "0 1+2 3+4"."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError


def class_map(merge_classes: str) -> tuple[int, ...]:
    """Return the class of each grade for `config.data.merge_classes`: the lowest grade that it is merged with.

    Grades joined by "+" are one class; classes are separated by spaces. An empty string merges nothing. Raises
    UserError unless each grade is named exactly once.
    """
    if not merge_classes.strip():
        return tuple(range(len(GRADES)))
    classes = [merged.split("+") for merged in merge_classes.split()]
    grades, named = list(map(str, range(len(GRADES)))), [grade for merged in classes for grade in merged]
    wrong = [f"{grade!r} is not a grade" for grade in named if grade not in grades]
    wrong += [f"grade {grade} is named {named.count(grade)} times" for grade in grades if named.count(grade) != 1]
    if wrong:
        raise UserError(
            f"config.data.merge_classes = {merge_classes!r}: {wrong[0]}; name each grade, 0 to 4, exactly once, "
            "such as '0 1+2 3+4'"
        )
    return tuple(int(min(merged)) for grade in grades for merged in classes if grade in merged)


def check_class_counts(grades: np.ndarray, merge_classes: str, min_images: int, network: str) -> None:
    """Raise UserError if a class has fewer than `min_images` training examples, of grades int32 [N]: a conditional
    network would memorize them."""
    classes = class_map(merge_classes)
    counts = np.bincount(np.asarray(classes)[grades], minlength=len(GRADES))
    for scarce in sorted(set(classes)):
        if counts[scarce] < min_images:
            names = " and ".join(name for name, its_class in zip(GRADES, classes) if its_class == scarce)
            raise UserError(
                f"config.network = {network!r} would learn {names} from {counts[scarce]} training photographs, fewer "
                f"than config.data.min_images_per_class = {min_images}: merge it with another grade, such as "
                f"--config.data.merge_classes={_merge_with_neighbor(classes, scarce)!r}, or lower that number"
            )


def _merge_with_neighbor(classes: Sequence[int], scarce: int) -> str:
    """Return `merge_classes` with class `scarce` merged with the next one, or the last with the one before."""
    distinct = sorted(set(classes))
    merged = ["+".join(str(grade) for grade, its_class in enumerate(classes) if its_class == c) for c in distinct]
    at = max(0, min(distinct.index(scarce), len(merged) - 2))
    return " ".join([*merged[:at], "+".join(merged[at : at + 2]), *merged[at + 2 :]])
