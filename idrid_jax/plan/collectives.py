"""What devices tell one another in a compiled program, read from its text.

XLA names every exchange in the optimized module: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all`,
`collective-permute` and rarer ones, as one instruction, as a pair `...-start` and `...-done`, or wrapped in the
computation of an `async-start`. Each is counted once; in the body of a loop, as often as the compiler knows it to run.

Bytes on the wire are those that one device sends when the exchange goes around a ring of its n members (Thakur et al.
2005; Patarasuk and Yuan 2009), with B the bytes of the whole:

    all-reduce          2 (n - 1) / n B      B: the array that each holds
    all-gather            (n - 1) / n B      B: the result
    reduce-scatter        (n - 1) / n B      B: the array that each holds before
    all-to-all            (n - 1) / n B      B: the array that each holds
    collective-permute              B        B: the array that each sends
"""

import collections
import dataclasses
import re

from idrid_jax.plan import hlo

_PART = lambda whole, n: (n - 1) / n * whole
KINDS = {  # name in the text -> bytes sent, of bytes and members
    "all-reduce": lambda whole, n: 2 * (n - 1) / n * whole,
    "all-gather": _PART,
    "reduce-scatter": _PART,
    "all-to-all": _PART,
    "ragged-all-to-all": _PART,
    "collective-permute": lambda whole, n: whole,
    "collective-broadcast": lambda whole, n: whole,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange.

    Attributes:
      kind: a name in KINDS.
      bytes: of the whole array, as the table above has it, for one run.
      members: devices of one group that exchange.
      times: runs in one call of the program.
      known: False where it stands in a loop whose trips the compiler does not tell; then `times` counts one.
    """

    kind: str
    bytes: int
    members: int
    times: int = 1
    known: bool = True

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends for it in one call of the program, on a ring."""
        return self.times * KINDS[self.kind](self.bytes, self.members)


def read(module: hlo.Module, devices: int) -> list[Collective]:
    """The exchanges between two or more devices in a compiled module, in the order of its text.

    devices: of the whole program; they are the group where the text names none.
    """
    # What an exchange itself calls is the sum of two numbers
    times = module.times(lambda one: one.operation.removesuffix("-start") not in KINDS)
    found = []
    for name, instructions in module.computations.items():
        runs, known = times.get(name, (0, True))
        for one in instructions if runs else ():
            collective = _collective(one, devices)
            if collective is not None and collective.members > 1:
                found.append(dataclasses.replace(collective, times=runs, known=known))
    return found


def summary(found: list[Collective]) -> dict[str, dict[str, float]]:
    """By kind: how many a call makes, their bytes, and the bytes that a device sends."""
    kinds = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "wire_bytes": 0.0})
    for one in found:
        kind = kinds[one.kind]
        kind["count"] += one.times
        kind["bytes"] += one.times * one.bytes
        kind["wire_bytes"] += one.wire_bytes
    return dict(sorted(kinds.items()))


def _collective(one: hlo.Instruction, devices: int) -> Collective | None:
    kind = one.operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    result = one.shape
    # The start of these two gives operands and results together; of the others, results alone
    if one.operation in ("all-gather-start", "collective-permute-start"):
        result = hlo.elements(one.shape)[1]
    members = _members(one.rest, kind, devices)
    size = hlo.size(result)
    return Collective(kind, size * members if kind == "reduce-scatter" else size, members)


def _members(rest: str, kind: str, devices: int) -> int:
    """Devices of a group; the largest where groups differ. A permutation counts 2 where any device sends to another."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest.replace(" ", ""))
        moved = [pair for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1] if pairs else "") if pair[0] != pair[1]]
        return 2 if moved else 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=\{((?:\{[\d,\s]*\},?\s*)+)\}", rest):
        return max(len(re.findall(r"\d+", group)) for group in re.findall(r"\{([^{}]*)\}", match[1]))
    return devices
