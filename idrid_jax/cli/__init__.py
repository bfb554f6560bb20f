"""The commands, and the only place that knows flags. Heavy imports wait until a command needs them."""

import errno
import os
import sys
import warnings

from absl import flags

from idrid_jax import runtime
from idrid_jax.cli import bench, blind, data, images, plan, report, runs, sweep
from idrid_jax.cli.command import Command, Group
from idrid_jax.cli.parsing import HELP, PROGRAM, describe, parse
from idrid_jax.errors import UserError, suggest_name

COMMANDS = {
    "phantom": data.PHANTOM,
    "prepare": data.PREPARE,
    "train": runs.TRAIN,
    "sample": images.SAMPLE,
    "evaluate": runs.EVALUATE,
    "interpolate": images.INTERPOLATE,
    "augment": data.AUGMENT,
    "report": report.REPORT,
    "blind": blind.BLIND,
    "sweep": sweep.SWEEP,
    "bench": bench.BENCH,
    "plan": plan.PLAN,
}

# What the file system says of a path or a disk that the user chose
USERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C, or
    what the command says."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    warnings.filterwarnings("ignore", module="PIL")  # of what a damaged file holds; what cannot be read is refused
    try:
        if arguments[:1] == ["--version"]:
            import idrid_jax

            print(idrid_jax.__version__)
            return 0
        name, command, arguments = _find(arguments)
        if isinstance(command, Group):
            print(_overview(name, command))
            return 0 if arguments else 2
        # NumPy's products are small here: its threads make `evaluate` a third slower, and ten times on a busy machine
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        runtime.keep_freed_memory()
        runtime.enable_compilation_cache()
        command.define(values, [name, *arguments])
        if HELP & set(arguments):
            print(describe(name, command.summary, command.example, values))
            return 0
        parse(name, values, arguments)
        return command.run(values) or 0
    except (UserError, OSError, KeyboardInterrupt) as error:
        told = explain(error, values)
        if told is None:
            raise
        print(f"{PROGRAM}: {told[0]}", file=sys.stderr)
        return told[1]


def explain(error: BaseException, values: flags.FlagValues) -> tuple[str, int] | None:
    """A line for the user and the exit status; None for an error of ours, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if not isinstance(error, OSError) or error.errno not in USERS:
        return None
    places = [values[name].value for name in ("out", "workdir", "data_dir") if name in values]
    place = error.filename or next(iter(places), "the disk")
    place = place[0] if isinstance(place, list) else place  # of a flag that is given several times
    return f"{place}: {os.strerror(error.errno)}; make room or choose another place", 2


def _find(arguments: list[str]) -> tuple[str, Command | Group, list[str]]:
    """The command that the first words name ("bench step"), and what follows them.

    A group where the words end in one, followed by nothing or by a call for help. Raises UserError for another word.
    """
    words, found = [], Group(
        "From IDRiD as downloaded to trained generators, measured samples and a class-balanced synthetic release.",
        COMMANDS,
    )
    while isinstance(found, Group) and arguments and arguments[0] not in HELP | {"help"}:
        word, *arguments = arguments
        words.append(word)
        if word not in found.commands:
            raise UserError(f"{' '.join(words)}: no such command; {suggest_name(word, found.commands)}")
        found = found.commands[word]
    return " ".join(words), found, arguments


def _overview(name: str, group: Group) -> str:
    width = max(map(len, group.commands))
    program = f"{PROGRAM} {name}".rstrip()
    return "\n".join(
        [
            group.summary,
            "",
            f"usage: {program} COMMAND [--flag=value ...]",
            "",
            *(f"  {name:{width}}  {command.summary}" for name, command in group.commands.items()),
            "",
            f"{program} COMMAND --help tells its flags.",
        ]
    )
