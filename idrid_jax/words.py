"""Nearest names, for messages about a misspelt one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """ "did you mean X?" where one of `names`, or the last dotted part of one, is near `name`; else the list of
    them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:  # "samplng" for "data.sampling"
        tails = {full.rsplit(".", 1)[-1]: full for full in names}
        close = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.5)]
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
