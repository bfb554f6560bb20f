"""SIGTERM and Ctrl-C as a question that the loop asks between steps."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from idrid_jax.training import multihost


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """Within the block SIGTERM and the first Ctrl-C only make the given function return True.

    It is to be asked after each step, with 1, 2, ... Of several processes any may be told: they agree on a step that
    none has passed, and it returns True on all at that one.
    """
    several = multihost.current().count > 1
    received = []

    def receive(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        received.append(number)
        if several:
            signal.raise_signal(signal.SIGTERM)

    # JAX listens to SIGTERM since it was joined, and tells the other processes
    numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, receive) for number in numbers}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before = {}
    try:
        if several:
            from jax.experimental import multihost_utils

            yield multihost_utils.reached_preemption_sync_point
        else:
            yield lambda step: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
