"""What a command is. A group of them has the word that goes before theirs: `idrid-jax bench step`."""

import dataclasses
from collections.abc import Callable

from absl import flags


@dataclasses.dataclass(frozen=True)
class Command:
    """`define` adds its flags, given the command's words and all that follows; `run` takes their values, and may return
    an exit status."""

    summary: str
    example: str
    define: Callable[[flags.FlagValues, list[str]], None]
    run: Callable[[flags.FlagValues], int | None]


@dataclasses.dataclass(frozen=True)
class Group:
    summary: str
    commands: dict[str, Command]
