"""The form of a command and of a group of commands, such as `idrid-jax bench step`."""

import dataclasses
from collections.abc import Callable

from absl import flags


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      summary: one line for the overview and for --help.
      example: flags of a typical call, for --help.
      define: (flag values, [command, *arguments]) -> None; defines the command's flags.
      run: flag values -> exit status (None: 0).
      trains: most of its time goes into training steps, so that on CPU `runtime.keep_freed_memory` pays.
    """

    summary: str
    example: str
    define: Callable[[flags.FlagValues, list[str]], None]
    run: Callable[[flags.FlagValues], int | None]
    trains: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Commands that share their first word."""

    summary: str
    commands: dict[str, Command]
