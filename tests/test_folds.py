"""Folds of a split: stratified by grade, with copies of a photograph together."""

import numpy as np
import pytest

from idrid_jax.data.folds import assign_folds
from idrid_jax.errors import UserError

GRADES = np.repeat(range(5), (12, 3, 11, 7, 4))
GROUPS = [(0, 1), (15, 16, 17)]


@pytest.mark.parametrize("n", (2, 3, 5))
def test_copies_stay_together_and_folds_are_stratified(n):
    for seed in range(5):
        fold = assign_folds(GRADES, GROUPS, n, seed)
        assert fold.shape == (37,) and fold.dtype.kind == "i" and set(fold) == set(range(n))
        assert fold[0] == fold[1] and fold[15] == fold[16] == fold[17]
        for grade in range(5):
            sizes = np.bincount(fold[GRADES == grade], minlength=n)
            assert max(sizes) - min(sizes) <= 2
        np.testing.assert_array_equal(fold, assign_folds(GRADES, GROUPS, n, seed))


def test_seeds_differ():
    assert len({tuple(assign_folds(GRADES, GROUPS, 5, seed)) for seed in range(10)}) == 10


def test_without_groups_folds_differ_by_at_most_one():
    fold = assign_folds(GRADES, (), 4, 0)
    assert max(np.bincount(fold)) - min(np.bincount(fold)) <= 2
    for grade in range(5):
        sizes = np.bincount(fold[GRADES == grade], minlength=4)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", (0, 1, 38))
def test_a_number_of_folds_out_of_range_is_refused(n):
    with pytest.raises(UserError, match=f"{n} folds"):
        assign_folds(GRADES, GROUPS, n, 0)
