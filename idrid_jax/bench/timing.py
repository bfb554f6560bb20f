"""Interleaved timing of several sides, and the machine's rate of matrix products."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

PAUSE_S = 0.02  # between two sides, so that a spinning thread pool of the last one falls asleep


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each round of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def time_interleaved(sides: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Call every side `warm_up` times, then `rounds` times in turns; return the times of each side.

    Waits for the JAX arrays that a side returns. Every second round runs in reverse order, so that no side always
    follows the same one. Other load on the machine affects all sides alike: compare medians of one call.
    """
    for _ in range(warm_up):
        for side in sides.values():
            jax.block_until_ready(side())
    seconds = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            jax.block_until_ready(sides[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def matrix_flops_per_s(dtype: str) -> float:
    """Return the best rate of a few matrix products of `dtype`, accumulated in float32, on the first device, in FLOP/s.

    The products are one square, one tall and one flat, like those of convolutions, at JAX's default precision (TF32 for
    float32 on NVIDIA GPUs), as the networks run. A program's share of this rate shows how well it uses the device.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    best = 0.0
    for rows, inner, columns in ((n, n, n), (8 * n, n // 2, n // 4), (n // 4, 4 * n, n // 2)):
        keys = jax.random.split(jax.random.key(0), 2)
        a, b = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, ((rows, inner), (inner, columns))))
        product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
        times = time_interleaved({"product": lambda: product(a, b)}, rounds=5)["product"]
        best = max(best, 2 * rows * inner * columns / min(times.seconds))
    return best
