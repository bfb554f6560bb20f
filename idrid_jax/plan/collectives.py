"""Collectives of a compiled program: how many, and how many bytes each device sends for them.

JAX reports no collectives, so they are read from the text of the optimized module. Interconnect bytes are what one
device sends when the collective runs on a ring of n devices (Thakur et al. 2005; Patarasuk and Yuan 2009), where B is
the size of the whole array:

    all-reduce                          2 (n - 1) / n B
    all-gather, reduce-scatter            (n - 1) / n B
    all-to-all                            (n - 1) / n B
    collective-permute, -broadcast                    B
"""

import collections
import math
import re

_RING_FACTOR = {  # kind -> bytes sent per byte of the whole array, by number of devices in a group
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_COLLECTIVE = re.compile(rf"^\s+(?:ROOT\s+)?%?[\w.\-]+ = ([^=%\"]*?) ({'|'.join(_RING_FACTOR)})(-start)?\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")


def summarize_collectives(text: str, num_devices: int) -> tuple[dict[str, dict[str, float]], int]:
    """Return collectives by kind, and how many of them are in loops of unknown length (counted once).

    Args:
      text: an optimized module, from `jax.stages.Compiled.as_text`.
      num_devices: devices of the program; they form one group where an instruction names no groups.

    Each kind has "count", "bytes" (of the whole arrays) and "interconnect_bytes" (sent by each device) for one call of
    the program. Collectives within groups of one device are ignored. Raises ValueError if the text has no entry
    computation.
    """
    callers, trips, found, current, entry = {}, {}, [], "", ""
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if match := _COMPUTATION.match(line):
            current = match[1]
            entry = current if line.startswith("ENTRY") else entry
            continue
        for called in _CALLED.findall(line):
            callers.setdefault(called, current)
        if match := _LOOP.search(line):
            known = _TRIPS.search(line)
            trips[match[1]] = int(known[1]) if known else None
        if match := _COLLECTIVE.match(line):
            found.append((current, *_collective(*match.groups(), num_devices)))

    if not entry:
        raise ValueError("no ENTRY computation: the text is not an optimized HLO module")
    kinds, in_unknown_loops = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "interconnect_bytes": 0.0}), 0
    for computation, kind, size, group in found:
        if group < 2:
            continue
        runs, known = _runs(computation, entry, callers, trips)
        in_unknown_loops += not known
        kinds[kind]["count"] += runs
        kinds[kind]["bytes"] += runs * size
        kinds[kind]["interconnect_bytes"] += runs * size * _RING_FACTOR[kind](group)
    return dict(sorted(kinds.items())), in_unknown_loops


def _runs(computation: str, entry: str, callers: dict[str, str], trips: dict[str, int | None]) -> tuple[int, bool]:
    """Return how often the program runs a computation, and whether all loops around it have a known length."""
    runs, known = 1, True
    while computation != entry:
        if computation not in callers:
            return 0, True
        turns = trips.get(computation, 1)
        runs, known = runs * (turns or 1), known and turns is not None
        computation = callers[computation]
    return runs, known


def _collective(shape: str, kind: str, start: str | None, rest: str, num_devices: int) -> tuple[str, int, int]:
    """Return (kind, bytes of the whole array, devices in a group) of one instruction."""
    group = _group_size(rest, kind, num_devices)
    arrays = [(dtype, _num_bytes(dtype, dimensions)) for dtype, dimensions in _ARRAY.findall(shape)]
    size = sum(count for _, count in arrays)
    if kind == "reduce-scatter":  # the result is one device's part
        size *= group
    elif start and kind == "all-gather":  # the result of its start has the operands too, 1 / n of the gathered arrays
        size = size * group // (group + 1)
    elif start and kind == "collective-permute":  # likewise operands, results and two scalars
        size = sum(count for dtype, count in arrays if (dtype, count) != ("u32", 4)) // 2
    return kind, size, group


def _num_bytes(dtype: str, dimensions: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(int(size.strip(" <=")) for size in dimensions.split(",") if size.strip()) * bits // 8


def _group_size(rest: str, kind: str, num_devices: int) -> int:
    """Return the devices of a group, the largest where groups differ; for a permutation 2 if any device sends."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest.replace(" ", ""))
        moved = [pair for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1] if pairs else "") if pair[0] != pair[1]]
        return 2 if moved else 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)+)\}", rest):
        return max(len(re.findall(r"\d+", group)) for group in re.findall(r"\{([^{}]*)\}", match[1]))
    return num_devices
