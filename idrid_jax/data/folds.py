"""Cross-validation folds, stratified by grade, that keep copies of one photograph together."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES, SPLITS
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError

NUM_HELD_OUT_FOLDS = 5  # of `config.data.held_out_fold`
NO_FOLD = "none"  # its default: the official test split is held out


def assign_folds(grades: np.ndarray, groups: Sequence[Sequence[int]], num_folds: int, seed: int) -> np.ndarray:
    """Return the fold 0..num_folds-1 of each photograph: int [N], a function of the arguments.

    Folds are stratified by grade: without groups, they differ by at most one photograph per grade. Photographs of one
    group are in the same fold.

    Args:
      grades: int [N], 0 to 4.
      groups: indices of copies of one photograph; each index is in at most one group.
      num_folds: at least 2.
      seed: of the assignment.

    Raises UserError for fewer than 2 folds, or fewer photographs than folds.
    """
    if not 2 <= num_folds <= len(grades):
        raise UserError(
            f"{len(grades)} photographs cannot be split into {num_folds} folds; choose from 2 to {len(grades)}"
        )
    grouped = {index for group in groups for index in group}
    units = [list(group) for group in groups if len(group)] + [[i] for i in range(len(grades)) if i not in grouped]
    shuffled = [units[i] for i in np.random.default_rng(seed).permutation(len(units))]
    counts = np.zeros((num_folds, len(GRADES)), int)
    result = np.empty(len(grades), int)
    for unit in sorted(shuffled, key=len, reverse=True):  # large groups first: single photographs then even the folds
        unit_grades = np.asarray(grades)[unit]
        fold = min(range(num_folds), key=lambda k: (counts[k, unit_grades].sum(), counts[k].sum()))
        result[unit] = fold
        np.add.at(counts[fold], unit_grades, 1)
    return result


def duplicate_indices(manifest: Manifest, split: str) -> list[list[int]]:
    """Return the groups of copies of one photograph as indices in the order of `cache.load`, for `assign_folds`."""
    return _indices_of_copies(manifest, manifest.grading[split])


def held_out_folds(manifest: Manifest) -> np.ndarray:
    """Return the fold 0..NUM_HELD_OUT_FOLDS-1 of each graded photograph, int [N]: training split, then test split.

    A run with `config.data.held_out_fold = k` never sees the photographs of fold k. Copies of a photograph are in one
    fold, whatever their splits. Raises UserError for fewer photographs than folds.
    """
    photographs = _all_photographs(manifest)
    grades = np.array([photograph.grade for photograph in photographs], int)
    return assign_folds(grades, _indices_of_copies(manifest, photographs), NUM_HELD_OUT_FOLDS, seed=0)


def validation_mask(manifest: Manifest, num_folds: int, held_out_fold: int | str = NO_FOLD) -> np.ndarray:
    """Return which training photographs are held out for checkpoint selection: bool [N].

    They are one of `num_folds` folds, in which copies of a photograph stay together; none for 0. Grades with fewer than
    `num_folds` photographs are not held out, nor are copies of their photographs that have other grades.

    held_out_fold: NO_FOLD: the photographs are the training split, in the order of `cache.load`. Otherwise they are
      those of both splits without this fold of `held_out_folds`, in its order.
    """
    photographs = manifest.grading["train"]
    if held_out_fold != NO_FOLD:
        folds = held_out_folds(manifest)
        photographs = [one for one, fold in zip(_all_photographs(manifest), folds) if fold != held_out_fold]
    grades = np.array([photograph.grade for photograph in photographs], int)
    if not num_folds or len(photographs) < num_folds:
        return np.zeros(len(photographs), bool)
    groups = _indices_of_copies(manifest, photographs)
    is_scarce = (np.bincount(grades, minlength=len(GRADES)) < num_folds)[grades]
    for group in groups:
        is_scarce[group] = is_scarce[group].any()
    return (assign_folds(grades, groups, num_folds, seed=0) == 0) & ~is_scarce


def _all_photographs(manifest):
    return [photograph for split in SPLITS for photograph in manifest.grading[split]]


def _indices_of_copies(manifest, photographs):
    index = {photograph.id: i for i, photograph in enumerate(photographs)}
    return [[index[name] for name in group if name in index] for group in manifest.duplicate_groups]
