"""SIGTERM and Ctrl-C as a question that the loop asks between steps."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and the first Ctrl-C only make the given function return True."""
    received = []

    def receive(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once
        received.append(number)

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
