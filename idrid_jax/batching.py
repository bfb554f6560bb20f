"""Apply a function to many images, one batch after the other."""

from collections.abc import Callable

import numpy as np


def map_in_batches(function: Callable, *arrays: np.ndarray, batch_size: int) -> np.ndarray:
    """Concatenate function(*batches) over batches of `batch_size` along the first axis of arrays [N, ...]: [N, ...].

    The last batch is padded with repeated items, and their results are dropped, so `function` is compiled once. For
    N = 0 the result still has the shape and dtype that `function` returns.
    """
    results = []
    for start in range(0, max(1, len(arrays[0])), batch_size):
        batches = [np.asarray(x[start : start + batch_size]) for x in arrays]
        padded = [x if len(x) == batch_size else np.resize(x, (batch_size, *x.shape[1:])) for x in batches]
        results.append(np.asarray(function(*padded))[: len(batches[0])])
    return np.concatenate(results)
