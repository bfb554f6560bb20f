"""Class merging: grades that a conditional network treats as one class, written as in "0 1+2 3+4"."""

from idrid_jax.errors import UserError
from idrid_jax.models.layers import NUM_GRADES


def class_map(merge_classes: str) -> tuple[int, ...]:
    """Return the class of each grade for `config.data.merge_classes`: the lowest grade that it is merged with.

    Grades joined by "+" are one class; classes are separated by spaces. An empty string merges nothing. Raises
    UserError unless each grade is named exactly once.
    """
    if not merge_classes.strip():
        return tuple(range(NUM_GRADES))
    classes = [merged.split("+") for merged in merge_classes.split()]
    grades, named = list(map(str, range(NUM_GRADES))), [grade for merged in classes for grade in merged]
    wrong = [f"{grade!r} is not a grade" for grade in named if grade not in grades]
    wrong += [f"grade {grade} is named {named.count(grade)} times" for grade in grades if named.count(grade) != 1]
    if wrong:
        raise UserError(
            f"config.data.merge_classes = {merge_classes!r}: {wrong[0]}; name each grade, 0 to 4, exactly once, "
            "such as '0 1+2 3+4'"
        )
    return tuple(int(min(merged)) for grade in grades for merged in classes if grade in merged)
