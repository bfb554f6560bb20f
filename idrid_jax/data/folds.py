"""A split parted into folds that are alike in their grades and never share a photograph."""

from collections.abc import Sequence

import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError


def folds(grades: np.ndarray, groups: Sequence[Sequence[int]], n: int, seed: int) -> np.ndarray:
    """The fold 0..n-1 of each photograph: int [N].

    Stratified by grade: folds differ by at most one photograph a grade where there are no groups. Photographs of one
    group share a fold. A function of its arguments alone.

    grades: int [N] in 0..4. groups: places of copies of one photograph, each place in at most one group.
    Raises UserError for fewer than 2 folds or fewer photographs than folds.
    """
    if not 2 <= n <= len(grades):
        raise UserError(f"{len(grades)} photographs cannot be parted into {n} folds; choose from 2 to {len(grades)}")
    grouped = {place for group in groups for place in group}
    units = [list(group) for group in groups if len(group)] + [[i] for i in range(len(grades)) if i not in grouped]
    shuffled = [units[i] for i in np.random.default_rng(seed).permutation(len(units))]
    counts = np.zeros((n, len(GRADES)), int)
    result = np.empty(len(grades), int)
    for unit in sorted(shuffled, key=len, reverse=True):  # large ones first: single photographs then level the folds
        of_unit = np.asarray(grades)[unit]
        fold = min(range(n), key=lambda k: (counts[k, of_unit].sum(), counts[k].sum()))
        result[unit] = fold
        np.add.at(counts[fold], of_unit, 1)
    return result


def validation(manifest: Manifest, n: int) -> np.ndarray:
    """Which training photographs are kept from the networks, to choose a checkpoint by: bool [N], in the order of
    `cache.load`.

    One of n folds, in which copies of a photograph stay together; 0: none. A grade of fewer than n photographs gives
    none away, nor their copies of other grades.
    """
    photographs = manifest.grading["train"]
    grades = np.array([photograph.grade for photograph in photographs], int)
    if not n or len(photographs) < n:
        return np.zeros(len(photographs), bool)
    place = {photograph.id: i for i, photograph in enumerate(photographs)}
    groups = [[place[name] for name in group if name in place] for group in manifest.groups]
    scarce = (np.bincount(grades, minlength=len(GRADES)) < n)[grades]
    for group in groups:
        scarce[group] = scarce[group].any()
    return (folds(grades, groups, n, seed=0) == 0) & ~scarce
