"""Folds of a split: level by grade, and no photograph on two sides."""

import numpy as np
import pytest

from idrid_jax.data.folds import folds
from idrid_jax.errors import UserError

GRADES = np.repeat(range(5), (12, 3, 11, 7, 4))
GROUPS = [(0, 1), (15, 16, 17)]


@pytest.mark.parametrize("n", (2, 3, 5))
def test_copies_stay_together_and_grades_are_level(n):
    for seed in range(20):
        fold = folds(GRADES, GROUPS, n, seed)
        assert fold.shape == (37,) and fold.dtype.kind == "i" and set(fold) == set(range(n))
        assert fold[0] == fold[1] and fold[15] == fold[16] == fold[17]
        for grade in range(5):
            sizes = np.bincount(fold[GRADES == grade], minlength=n)
            assert max(sizes) - min(sizes) <= 2
        np.testing.assert_array_equal(fold, folds(GRADES, GROUPS, n, seed))


def test_the_seed_deals_anew():
    assert len({tuple(folds(GRADES, GROUPS, 5, seed)) for seed in range(10)}) == 10


def test_without_groups_folds_are_level():
    fold = folds(GRADES, (), 4, 0)
    assert max(np.bincount(fold)) - min(np.bincount(fold)) <= 2
    for grade in range(5):
        sizes = np.bincount(fold[GRADES == grade], minlength=4)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", (0, 1, 38))
def test_folds_that_cannot_be(n):
    with pytest.raises(UserError, match=f"into {n} folds"):
        folds(GRADES, GROUPS, n, 0)
