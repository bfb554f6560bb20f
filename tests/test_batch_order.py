"""The order of photographs: epochs, grade frequencies, starting at any step, and equal batches of both pipelines."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idrid_jax.data.cache import Split
from idrid_jax.data.pipeline import resident, tfdata
from idrid_jax.data.pipeline.batch_order import PERIOD, BatchOrder, grade_shares, interleave
from idrid_jax.errors import UserError
from idrid_jax.training import sharding

GRADES = np.repeat(np.arange(5, dtype=np.int32), (9, 2, 7, 4, 3))[np.random.default_rng(0).permutation(25)]
samplings = pytest.mark.parametrize("sampling", ["natural", "tempered"])  # balanced is tempered with equal shares


def indices(order, steps, first=0):
    """The indices of `steps` batches, concatenated."""
    call = jax.jit(order)
    return np.concatenate([np.asarray(call(np.int32(step))) for step in range(first, first + steps)])


def order(sampling="natural", seed=0, batch_size=4, grades=GRADES, temperature=2.0):
    return BatchOrder(grades, seed=seed, batch_size=batch_size, sampling=sampling, temperature=temperature)


@pytest.mark.parametrize("batch_size", [4, 60])  # across the end of an epoch; several epochs
def test_natural_epochs_are_permutations(batch_size):
    n = len(GRADES)
    found = indices(order(batch_size=batch_size), -(-3 * n // batch_size))[: 3 * n].reshape(3, n)
    assert (np.sort(found, axis=1) == np.arange(n)).all()
    assert (found[0] != found[1]).any() and (found[1] != found[2]).any()


@samplings
def test_positions_do_not_depend_on_the_batch_size(sampling):
    assert (indices(order(sampling, batch_size=8), 10) == indices(order(sampling, batch_size=40), 2)).all()


def test_balanced_grades_are_equally_frequent():
    found = indices(order("balanced", batch_size=7), 30)
    for first in range(0, len(found) - 5):
        assert sorted(GRADES[found[first : first + 5]]) == [0, 1, 2, 3, 4]


def test_balanced_epochs_within_a_grade_are_permutations():
    found = indices(order("balanced", batch_size=10), 30)
    for grade in range(5):
        members = np.flatnonzero(GRADES == grade)
        of_grade = found[GRADES[found] == grade]
        epochs = of_grade[: len(of_grade) // len(members) * len(members)].reshape(-1, len(members))
        assert len(epochs) >= 5 and (np.sort(epochs, axis=1) == members).all()


def test_balanced_positions():
    """Position k is photograph k // 5 of the order of grade k % 5."""
    this = order("balanced", seed=3, batch_size=7)

    @jax.jit
    def expected(step):
        position = step * 7 + jnp.arange(7)
        by_grade = [
            this._permuted(jax.random.fold_in(this._key, grade), position // 5, np.flatnonzero(GRADES == grade))
            for grade in range(5)
        ]
        return jnp.stack(by_grade)[position % 5, jnp.arange(7)]

    for step in (0, 1, 1_000_003):
        assert (indices(this, 1, step) == np.asarray(expected(step))).all()


# -- Tempered

IDRID = (134, 20, 136, 74, 49)


@pytest.mark.parametrize("counts", [(9, 2, 7, 4, 3), IDRID])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0, 1e6])
def test_tempered_frequencies_follow_the_formula(counts, temperature):
    found = grade_shares(counts, temperature) / PERIOD
    expected = np.asarray(counts) ** (1 / temperature)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1 / PERIOD)
    if temperature == 1e6:
        assert (found == 1 / 5).all()


def test_tempered_grades_are_spread_evenly_and_none_is_missing():
    counts = grade_shares([5000, 1, 3000, 10, 1], 1.0)
    assert counts.sum() == PERIOD and counts.min() == 1
    for counts in (counts, grade_shares(IDRID, 2.0), grade_shares(IDRID, 1.0)):
        table = interleave(counts)
        assert (np.bincount(table) == counts).all()
        for grade, count in enumerate(counts):  # any stretch has each grade's share to within three
            so_far = np.concatenate([[0], np.cumsum(np.tile(table, 2) == grade)])
            length = np.arange(PERIOD)
            found = so_far[length[:, None] + length] - so_far[length][:, None]
            assert np.abs(found - length * count / PERIOD).max() < 3
    assert interleave(np.array([3, 3, 3])).tolist() == [0, 1, 2] * 3


def test_tempered_photographs_of_a_grade_are_equally_frequent():
    this = order("tempered", batch_size=60, grades=GRADES)
    found = indices(this, 8)
    shares = grade_shares(np.bincount(GRADES), 2.0)
    assert (np.bincount(GRADES[found]) == len(found) // PERIOD * shares).all()
    for end in (100, 333, len(found)):
        for grade in range(5):
            of_grade = np.bincount(found[:end], minlength=len(GRADES))[GRADES == grade]
            assert of_grade.max() - of_grade.min() <= 1, (end, grade)
    for grade in range(5):  # and every epoch is a permutation
        members = np.flatnonzero(GRADES == grade)
        of_grade = found[GRADES[found] == grade]
        epochs = of_grade[: len(of_grade) // len(members) * len(members)].reshape(-1, len(members))
        assert len(epochs) >= 5 and (np.sort(epochs, axis=1) == members).all()


@samplings
def test_seeds_differ(sampling):
    assert (indices(order(sampling, seed=0), 6) != indices(order(sampling, seed=1), 6)).any()


@pytest.mark.parametrize("missing, name", [(1, "MILD"), (4, "PROLIFERATIVE")])
def test_a_missing_grade_is_refused_unless_sampling_is_natural(missing, name):
    without = GRADES[GRADES != missing]
    for sampling in ("balanced", "tempered"):
        with pytest.raises(UserError, match=f"{sampling}.*{name}"):
            order(sampling, grades=without)
    assert sorted(indices(order(batch_size=len(without), grades=without), 1)) == list(range(len(without)))


def test_an_empty_split_and_an_unknown_sampling_are_refused():
    with pytest.raises(UserError, match="no photograph"):
        order(grades=GRADES[:0])
    with pytest.raises(UserError, match="config.data.sampling"):
        order("even")


# -- Pipelines


def numbered_split(grades, array=None):
    """A split of 2 x 2 images whose first pixel is their number."""
    images = np.zeros((len(grades), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(grades))
    return Split(images if array is None else array(images), grades, grades, tuple(map(str, range(len(grades)))))


def host_batches(count, *, split=None, **options):
    options = dict(seed=0, batch_size=8, sampling="natural", temperature=2.0, first_step=0) | options
    return list(itertools.islice(tfdata.batches(split or numbered_split(GRADES), **options), count))


@samplings
def test_both_pipelines_yield_the_same_batches(sampling):
    mesh, split = sharding.make_mesh(1), numbered_split(GRADES)
    this = order(sampling, seed=5, batch_size=8)
    data = resident.put(split, mesh)
    batch = jax.jit(lambda step: resident.batch(this, *data, step, mesh))
    for step, (images, grades) in enumerate(host_batches(9, seed=5, sampling=sampling)):
        expected_images, expected_grades = batch(step)
        assert images.dtype == np.uint8 and grades.dtype == np.int32
        assert (images == np.asarray(expected_images)).all() and (grades == np.asarray(expected_grades)).all()
        assert (GRADES[images[:, 0, 0, 0]] == grades).all()


def test_batches_from_step_k_equal_those_from_0_after_k():
    whole = host_batches(12, sampling="tempered")
    for k in (5, 11):
        for a, b in zip(whole[k:], host_batches(12 - k, sampling="tempered", first_step=k), strict=True):
            assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


class Counting:
    """An array that counts the images read from it."""

    def __init__(self, array):
        self.array, self.read = array, 0

    def __getitem__(self, index):
        self.read += len(index)
        return self.array[index]


@pytest.mark.parametrize("first_step", [0, 1_000_000])
def test_starting_late_reads_no_earlier_image(first_step):
    """The images read are those of the batches and of a short prefetch."""
    split = numbered_split(GRADES, Counting)
    host_batches(3, split=split, first_step=first_step)
    assert 3 * 8 <= split.images.read <= 100 * 8


@pytest.mark.parametrize("n, processes", [(25, 1), (25, 4), (413, 8), (3, 3)])
def test_shares_are_disjoint_and_cover_the_split(n, processes):
    shares = [np.arange(n)[tfdata.share(n, process, processes)] for process in range(processes)]
    assert (np.concatenate(shares) == np.arange(n)).all()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("sampling", ["natural", "tempered"])
def test_each_process_reads_only_its_share(sampling):
    split = numbered_split(np.tile(np.arange(5, dtype=np.int32), 8))
    seen = []
    for process in range(2):
        found = host_batches(5, split=split, sampling=sampling, process=process, processes=2)
        assert {len(images) for images, _ in found} == {4}
        assert all((split.grades[images[:, 0, 0, 0]] == grades).all() for images, grades in found)
        seen.append({int(i) for images, _ in found for i in images[:, 0, 0, 0]})
    assert seen == [set(range(20)), set(range(20, 40))]


def test_a_grade_that_is_missing_in_a_share_is_refused():
    with pytest.raises(UserError, match="SEVERE, PROLIFERATIVE .*share"):
        host_batches(1, split=numbered_split(np.sort(GRADES)), sampling="balanced", process=0, processes=2)
