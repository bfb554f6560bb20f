"""The order of photographs: epochs, balance, resume, and the same batches by both ways in."""

import itertools

import jax
import numpy as np
import pytest

from idrid_jax.data.pipeline import resident, tfdata
from idrid_jax.data.pipeline.batch_order import TABLE, Order, shares, turns
from idrid_jax.errors import UserError
from idrid_jax.training import sharding

GRADES = np.repeat(np.arange(5, dtype=np.int32), (9, 2, 7, 4, 3))[np.random.default_rng(0).permutation(25)]
samplings = pytest.mark.parametrize("sampling", ["natural", "balanced", "tempered"])


def walk(order, steps, first=0):
    """Indices of `steps` batches, one after the other."""
    call = jax.jit(order)
    return np.concatenate([np.asarray(call(np.int32(step))) for step in range(first, first + steps)])


def order(sampling="natural", seed=0, batch_size=4, grades=GRADES, temperature=2.0):
    return Order(grades, seed=seed, batch_size=batch_size, sampling=sampling, temperature=temperature)


@pytest.mark.parametrize("batch_size", [1, 4, 25, 60])  # within an epoch, across its end, an epoch, several
def test_natural_epochs_are_permutations(batch_size):
    n = len(GRADES)
    walked = walk(order(batch_size=batch_size), -(-3 * n // batch_size))[: 3 * n].reshape(3, n)
    assert (np.sort(walked, axis=1) == np.arange(n)).all()
    assert (walked[0] != walked[1]).any() and (walked[1] != walked[2]).any()


@samplings
@pytest.mark.parametrize("batch_size", [8, 40])
def test_the_walk_does_not_depend_on_the_batch(sampling, batch_size):
    """Position p holds the same photograph, however many a batch takes."""
    expected = walk(order(sampling, batch_size=1), 80)
    assert (walk(order(sampling, batch_size=batch_size), -(-80 // batch_size))[:80] == expected).all()


def test_balanced_grades_come_equally_often():
    walked = walk(order("balanced", batch_size=7), 30)
    for first in range(0, len(walked) - 5):
        assert sorted(GRADES[walked[first : first + 5]]) == [0, 1, 2, 3, 4]


def test_balanced_epochs_within_a_grade_are_permutations():
    walked = walk(order("balanced", batch_size=10), 30)
    for grade in range(5):
        members = np.flatnonzero(GRADES == grade)
        of_grade = walked[GRADES[walked] == grade]
        epochs = of_grade[: len(of_grade) // len(members) * len(members)].reshape(-1, len(members))
        assert len(epochs) >= 5 and (np.sort(epochs, axis=1) == members).all()


def test_balanced_is_what_it_was_before_there_were_tables():
    """Bit for bit, so that older runs go on: position k is photograph k // 5 of the walk of grade k % 5."""
    for batch_size in (1, 7, 32):
        this = order("balanced", seed=3, batch_size=batch_size)
        for step in (0, 1, 9, 1_000_003):
            position = step * batch_size + np.arange(batch_size, dtype=np.int32)
            expected = np.zeros_like(position)
            for grade in range(5):
                members = np.flatnonzero(GRADES == grade).astype(np.int32)
                walked = this._walk(jax.random.fold_in(this._key, grade), jax.numpy.asarray(position // 5), members)
                expected = np.where(position % 5 == grade, walked, expected)
            assert (np.asarray(this(step)) == expected).all()


# -- Tempered

IDRID = (134, 20, 136, 74, 49)


@pytest.mark.parametrize("counts", [(9, 2, 7, 4, 3), IDRID])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0, 1e6])
def test_tempered_grades_come_by_the_formula(counts, temperature):
    grades = np.repeat(np.arange(5, dtype=np.int32), counts)
    walked = walk(order("tempered", batch_size=60, grades=grades, temperature=temperature), 5 * TABLE // 60)
    found = np.bincount(grades[walked], minlength=5) / len(walked)
    expected = np.asarray(counts) ** (1 / temperature)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1 / TABLE)
    if temperature == 1e6:
        assert (found == 1 / 5).all()


def test_tempered_grades_are_spread_and_none_is_left_out():
    counts = shares([5000, 1, 3000, 10, 1], 1.0)
    assert counts.sum() == TABLE and counts.min() == 1
    for counts in (counts, shares(IDRID, 2.0), shares(IDRID, 1.0)):
        table = turns(counts)
        assert (np.bincount(table) == counts).all()
        for grade, count in enumerate(counts):  # any stretch has its share of each, give or take three
            so_far = np.concatenate([[0], np.cumsum(np.tile(table, 2) == grade)])
            length = np.arange(TABLE)
            found = so_far[length[:, None] + length] - so_far[length][:, None]
            assert np.abs(found - length * count / TABLE).max() < 3
    assert turns(np.array([3, 3, 3])).tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tempered_shows_the_photographs_of_a_grade_equally_often(temperature):
    this = order("tempered", batch_size=60, grades=GRADES, temperature=temperature)
    walked = walk(this, 8)
    for end in (100, 333, len(walked)):
        for grade in range(5):
            of_grade = np.bincount(walked[:end], minlength=len(GRADES))[GRADES == grade]
            assert of_grade.max() - of_grade.min() <= 1, (end, grade)
    for grade in range(5):  # and every epoch is a permutation
        members = np.flatnonzero(GRADES == grade)
        of_grade = walked[GRADES[walked] == grade]
        epochs = of_grade[: len(of_grade) // len(members) * len(members)].reshape(-1, len(members))
        assert len(epochs) >= 5 and (np.sort(epochs, axis=1) == members).all()


@samplings
def test_jit_changes_nothing(sampling):
    this = order(sampling)
    for step in (0, 5, 12_345_678):
        assert (np.asarray(this(step)) == np.asarray(jax.jit(this)(np.int32(step)))).all()


@samplings
def test_seeds_differ(sampling):
    assert (walk(order(sampling, seed=0), 6) != walk(order(sampling, seed=1), 6)).any()


@pytest.mark.parametrize("missing, name", [(1, "MILD"), (4, "PROLIFERATIVE")])
def test_a_missing_grade_is_refused_where_grades_are_balanced(missing, name):
    without = GRADES[GRADES != missing]
    for sampling in ("balanced", "tempered"):
        with pytest.raises(UserError, match=f"'{sampling}', but no photograph of grade {name} ") as error:
            order(sampling, grades=without)
        assert "\n" not in str(error.value)
    assert sorted(walk(order(batch_size=len(without), grades=without), 1)) == list(range(len(without)))


def test_other_refusals():
    with pytest.raises(UserError, match="no photograph"):
        order(grades=GRADES[:0])
    with pytest.raises(UserError, match="config.data.sampling = 'even'"):
        order("even")


# -- Both ways in


def images_of(grades):
    """Images that say which one they are."""
    images = np.zeros((len(grades), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(grades))
    return images


def streamed(count, *, grades=GRADES, images=None, **options):
    options = dict(seed=0, batch_size=8, sampling="natural", temperature=2.0, first_step=0) | options
    return list(
        itertools.islice(tfdata.batches(images_of(grades) if images is None else images, grades, **options), count)
    )


@samplings
def test_stream_and_resident_give_the_same_batches(sampling):
    here = sharding.make_mesh(1)
    this = order(sampling, seed=5, batch_size=8)
    data = resident.put(images_of(GRADES), GRADES, here)
    batch = jax.jit(lambda step: resident.batch(this, *data, step, here))
    for step, (images, grades) in enumerate(streamed(9, seed=5, sampling=sampling)):
        expected_images, expected_grades = batch(step)
        assert images.dtype == np.uint8 and grades.dtype == np.int32
        assert (images == np.asarray(expected_images)).all() and (grades == np.asarray(expected_grades)).all()
        assert (GRADES[images[:, 0, 0, 0]] == grades).all()


@samplings
def test_a_stream_begun_at_k_is_the_tail(sampling):
    whole = streamed(12, sampling=sampling)
    for k in (5, 11):
        for a, b in zip(whole[k:], streamed(12 - k, sampling=sampling, first_step=k), strict=True):
            assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


class Counting:
    """An array that counts the images read from it."""

    def __init__(self, array):
        self.array, self.read = array, 0

    def __getitem__(self, index):
        found = self.array[index]
        if isinstance(index, slice):
            return self  # a process's share; nothing is read yet
        self.read += len(found)
        return found


@pytest.mark.parametrize("first_step", [0, 1_000_000])
def test_beginning_late_skips_nothing(first_step):
    """The photographs read are those of the batches taken and of a short prefetch, not those of the steps before."""
    images = Counting(images_of(GRADES))
    streamed(3, images=images, first_step=first_step)
    assert 3 * 8 <= images.read <= 100 * 8


@pytest.mark.parametrize("n, processes", [(25, 1), (25, 4), (413, 8), (3, 3)])
def test_shares_are_disjoint_and_cover(n, processes):
    shares = [np.arange(n)[tfdata.share(n, process, processes)] for process in range(processes)]
    assert (np.concatenate(shares) == np.arange(n)).all()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@samplings
def test_each_process_reads_its_share_alone(sampling):
    grades = np.tile(np.arange(5, dtype=np.int32), 8)
    seen = []
    for process in range(2):
        batches = streamed(5, grades=grades, sampling=sampling, process=process, processes=2)
        assert {len(images) for images, _ in batches} == {4}
        seen.append({int(i) for images, _ in batches for i in images[:, 0, 0, 0]})
    assert seen == [set(range(20)), set(range(20, 40))]


def test_a_grade_missing_in_a_share_is_refused():
    grades = np.sort(GRADES)
    with pytest.raises(UserError, match="SEVERE, PROLIFERATIVE .*share"):
        tfdata.batches(
            images_of(grades), grades, seed=0, batch_size=8, sampling="balanced", first_step=0, process=0, processes=2
        )
