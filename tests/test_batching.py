"""`map_in_batches`: results do not depend on the batch size, and one shape is compiled."""

import numpy as np
import pytest

from idrid_jax.batching import map_in_batches


@pytest.mark.parametrize("in_threads", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 8, 50])
def test_results_do_not_depend_on_the_batch_size(count, in_threads):
    x, y = np.random.default_rng(0).random((2, count, 5), np.float32)
    shapes = set()

    def of(a, b):
        shapes.add((a.shape, b.shape))
        return np.stack([a + b, a * b], axis=1)

    out = map_in_batches(of, x, y, batch_size=4, in_threads=in_threads)
    assert shapes == {((4, 5), (4, 5))}
    np.testing.assert_array_equal(out, of(x, y))
    assert out.shape == (count, 2, 5) and out.dtype == np.float32
