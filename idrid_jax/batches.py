"""A function of many images, some at a time."""

from collections.abc import Callable

import numpy as np


def in_batches(of: Callable, *arrays: np.ndarray, at_once: int) -> np.ndarray:
    """of(*parts) along the first axis of arrays [N, ...], joined: [N, ...].

    Each part has `at_once` items, so that `of` is compiled once: the last is filled with items of its own, whose
    results are cut off. Of no items (N = 0) too the result has `of`'s shape and type.
    """
    done = []
    for start in range(0, max(1, len(arrays[0])), at_once):
        parts = [np.asarray(x[start : start + at_once]) for x in arrays]
        filled = [x if len(x) == at_once else np.resize(x, (at_once, *x.shape[1:])) for x in parts]
        done.append(np.asarray(of(*filled))[: len(parts[0])])
    return np.concatenate(done)
