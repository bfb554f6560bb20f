"""Output that cannot fail a command: a closed pipe, or a terminal that cannot encode a path."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Within the block, writing to stdout and stderr raises neither BrokenPipeError nor UnicodeEncodeError.

    After a reader has closed its end of a pipe (`idrid-jax ... | head`), output is discarded and the command goes on,
    so that training does not depend on its log. Characters that the encoding lacks are written as escapes.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Tolerant, streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):  # the stream is closed
                stream.flush()
        sys.stdout, sys.stderr = streams


class _Tolerant:
    """A text stream that writes to another one."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError:
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Let the stream write to the null device, also what Python flushes at its end."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
