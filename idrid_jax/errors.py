"""The exception for a user's mistake, and suggestions for misspelt names in its messages."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a field or a value.

    The message is one line that names the file or field, the value found, and what to do. `cli` prints it without a
    traceback and exits with status 2. Every other exception is a bug and keeps its traceback.
    """


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Return "did you mean X?" for the closest of `names`, or "choose one of ..." if none is close.

    The last dotted part of a name also matches: "samplng" suggests "data.sampling".
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        by_last_part = {full.rsplit(".", 1)[-1]: full for full in names}
        close = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last_part, n=1, cutoff=0.5)
        close = [by_last_part[last] for last in close]
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
