"""Times of several sides in one run, and what the machine can do at most."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

PAUSE = 0.02  # seconds between two sides, in which a thread pool that still spins falls asleep


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each round of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the rounds took less than the first, a quarter more than the second."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def interleaved(sides: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Calls every side `warm_up` times and then `rounds` times in turns -> {side: Times}.

    What a side returns is waited for if it is a JAX array. Every second round goes through the sides backwards, so that
    none always follows the same one. What else the machine does meanwhile then meets all sides alike: compare medians
    of one call.
    """
    for _ in range(warm_up):
        for side in sides.values():
            jax.block_until_ready(side())
    seconds = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            jax.block_until_ready(sides[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def matrix_rate(dtype: str) -> float:
    """FLOP/s of the best of a few matrix products of `dtype` that accumulate in float32, on the first device.

    One square, one tall and one flat product, as convolutions come to; at JAX's default precision (TF32 for float32 on
    NVIDIA GPUs), as the networks run. What a program reaches of it says how well it uses the arithmetic units.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    best = 0.0
    for rows, inner, columns in ((n, n, n), (8 * n, n // 2, n // 4), (n // 4, 4 * n, n // 2)):
        keys = jax.random.split(jax.random.key(0), 2)
        a, b = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, ((rows, inner), (inner, columns))))
        product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
        times = interleaved({"product": lambda: product(a, b)}, rounds=5)["product"]
        best = max(best, 2 * rows * inner * columns / min(times.seconds))
    return best
