"""Bytes of main memory that a compiled program reads and writes, from its text.

The compiler's own "bytes accessed" counts what every instruction touches wherever it lies, and a TPU's compiler keeps
much of it on the chip, in the memory spaces that its text marks S(1) and so on. Here an instruction's result and
operands count only where they lie in main memory: fusions as a whole, copies in and out once, and of an array from
which only slices are taken or rows gathered no more than these. Tiles' padding is left out: the truth is rather more.
"""

from idrid_jax.plan import hlo

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async-start", "opt-barrier", "domain"),
}
_PARTIAL = {"slice", "dynamic-slice", "gather"}  # read no more than they give
_RUNS = {"while", "conditional", "call", "async-start"}  # their computations' instructions count one by one


def read(module: hlo.Module) -> int:
    """Bytes read and written in one call; a loop of unknown length counts once."""
    times = module.times(lambda one: one.operation in _RUNS)
    total = 0
    for name, (runs, _) in times.items():
        instructions = module.computations.get(name, [])
        shapes = {one.name: one.shape for one in instructions}
        total += runs * sum(_of(one, shapes, module) for one in instructions)
    return total


def _of(one: hlo.Instruction, shapes: dict[str, str], module: hlo.Module) -> int:
    operation = one.operation
    if operation in _FREE or operation.endswith(("-done", "-update")):
        return 0
    operands = [shapes.get(name, "") for name in one.operands]
    if operation == "copy-start":
        return sum(map(_main, hlo.elements(one.shape)[:2]))
    if operation == "slice-start":
        part = hlo.elements(one.shape)[1]
        return _main(part) + (hlo.size(part) if _main(operands[0]) else 0)
    if operation.endswith("-start"):  # an exchange: what it sends and what it receives
        return 2 * sum(map(_main, operands))
    if operation == "dynamic-update-slice":
        return _main(operands[1]) + (hlo.size(operands[1]) if _main(one.shape) else 0)
    if operation in _PARTIAL:
        return _main(one.shape) + (hlo.size(one.shape) if _main(operands[0]) else 0)
    parts = _parts(one, module) if operation == "fusion" else {}
    total = _main(one.shape)
    for name in dict.fromkeys(one.operands):
        there = _main(shapes.get(name, ""))
        uses = [parts.get(i, there) for i, other in enumerate(one.operands) if other == name]
        total += min(there, sum(uses))
    return total


def _parts(fusion: hlo.Instruction, module: hlo.Module) -> dict[int, int]:
    """For operands of a fusion that it only takes slices of or gathers from: number -> bytes of these."""
    body = [one for name in fusion.called for one in module.computations.get(name, ())]
    parts = {}
    for one in body:
        if one.operation != "parameter":
            continue
        users = [other for other in body if one.name in other.operands]
        if users and all(user.operation in _PARTIAL and user.operands[0] == one.name for user in users):
            number = int(one.rest[1 : one.rest.index(")")])
            parts[number] = sum(hlo.size(user.shape) for user in users)
    return parts


def _main(shape: str) -> int:
    """Bytes of a shape's arrays that lie in main memory."""
    return sum(count for count, space in hlo.arrays(shape) if space == 0)
