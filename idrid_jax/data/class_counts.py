"""The number of training examples that each class of a conditional network has."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.models.class_merging import class_map


def check_class_counts(grades: np.ndarray, merge_classes: str, min_images: int, network: str) -> None:
    """Raise UserError if a class has fewer than `min_images` training examples, of grades int32 [N]: a conditional
    network would memorize them."""
    classes = class_map(merge_classes)
    counts = np.bincount(np.asarray(classes)[grades], minlength=len(GRADES))
    for scarce in sorted(set(classes)):
        if counts[scarce] < min_images:
            names = " and ".join(name for name, merged_into in zip(GRADES, classes) if merged_into == scarce)
            raise UserError(
                f"config.network = {network!r} would learn {names} from {counts[scarce]} training photographs, fewer "
                f"than config.data.min_images_per_class = {min_images}: merge it with another grade, such as "
                f"--config.data.merge_classes={_merge_with_neighbor(classes, scarce)!r}, or lower that number"
            )


def _merge_with_neighbor(classes: Sequence[int], scarce: int) -> str:
    """Return `merge_classes` with class `scarce` merged with the next one, or the last with the one before."""
    distinct = sorted(set(classes))
    merged = ["+".join(str(grade) for grade, merged_into in enumerate(classes) if merged_into == c) for c in distinct]
    at = max(0, min(distinct.index(scarce), len(merged) - 2))
    return " ".join([*merged[:at], "+".join(merged[at : at + 2]), *merged[at + 2 :]])
