"""The text of a compiled module: its computations, their instructions, and how often each computation runs."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([^\]]*)\](\{[^{}]*\})?")
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name: its own.
      shape: text of its result, with layouts.
      operation: opcode.
      rest: what follows the opcode, operands and attributes.
    """

    name: str
    shape: str
    operation: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names, in order."""
        return re.findall(r"%([\w.\-]+)", _enclosed(self.rest)) or re.findall(
            r"[A-Za-z_][\w.\-]*", _enclosed(self.rest)
        )

    @property
    def called(self) -> list[str]:
        """Computations that it names."""
        called = _CALLED.findall(self.rest)
        if branches := _BRANCHES.search(self.rest):
            called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
        return called

    @property
    def trips(self) -> int | None:
        """Of a while loop; None where the compiler does not know."""
        known = _TRIPS.search(self.rest)
        return int(known[1]) if known else None


@dataclasses.dataclass(frozen=True)
class Module:
    """computations: name -> its instructions; entry: the one that runs."""

    computations: dict[str, list[Instruction]]
    entry: str

    def times(self, follow: Callable[[Instruction], bool]) -> dict[str, tuple[int, bool]]:
        """How often one run of the entry runs each computation, and whether that is known: a loop of unknown length
        counts one. Only instructions that `follow` accepts are followed into the computations that they call."""
        times = collections.defaultdict(lambda: (0, True))

        def visit(name: str, runs: int, known: bool):
            before, sure = times[name]
            times[name] = before + runs, sure and known
            for one in self.computations.get(name, ()):
                # the update and the end of an asynchronous computation name it again
                if one.operation in ("async-update", "async-done") or not one.called or not follow(one):
                    continue
                inner = runs, known
                if one.operation == "while":
                    inner = (runs * one.trips, known) if one.trips is not None else (runs, False)
                for called in one.called:
                    visit(called, *inner)

        visit(self.entry, 1, True)
        return dict(times)


def parse(text: str) -> Module:
    """Reads what `jax.stages.Compiled.as_text` gives. Raises ValueError for a text without an entry."""
    computations, entry, lines = {}, "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None and (match := _INSTRUCTION.match(line)):
            end = _shape_end(match[3])
            if operation := re.match(r"\s*([a-z][a-z0-9\-]*)(?=\()", match[3][end:]):
                lines.append(Instruction(match[2], match[3][:end], operation[1], match[3][end + operation.end() :]))
    if not entry:
        raise ValueError("no ENTRY computation: this is no optimized HLO module")
    return Module(computations, entry)


def elements(shape: str) -> list[str]:
    """The elements of a tuple's text; a shape that is no tuple is its own only element."""
    shape = re.sub(r"/\*.*?\*/", "", shape).strip()
    if not shape.startswith("("):
        return [shape]
    found, depth, start = [], 0, 1
    for i, character in enumerate(shape):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            found.append(shape[start:i].strip())
            start = i + 1
    return [one for one in found if one]


def arrays(shape: str) -> Iterator[tuple[int, int]]:
    """(bytes, memory space) of every array in a shape's text; space 0 is the device's main memory."""
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        bits = _BITS.get(dtype)
        if bits is None:
            bits = int(re.search(r"\d+", dtype)[0])
        sizes = [int(size.strip().removeprefix("<=")) for size in dimensions.split(",") if size.strip()]
        space = re.search(r"S\((\d+)\)", layout)
        yield math.prod(sizes) * bits // 8, int(space[1]) if space else 0


def size(shape: str) -> int:
    """Bytes of all arrays in a shape's text."""
    return sum(count for count, _ in arrays(shape))


def _shape_end(line: str) -> int:
    """Where the result's shape ends: a tuple at its closing parenthesis, another one at the first space."""
    if not line.startswith("("):
        return max(0, line.find(" "))
    return len(_enclosed(line)) + 2


def _enclosed(text: str) -> str:
    """What stands between the parenthesis that a text begins with and its partner."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[1:i]
    return text[1:]
