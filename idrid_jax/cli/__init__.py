"""The commands, the only package that defines flags. A command imports JAX and other slow packages when it runs."""

import errno
import os
import sys
import warnings

from absl import flags

from idrid_jax import runtime
from idrid_jax.cli import streams
from idrid_jax.cli.augment import AUGMENT
from idrid_jax.cli.bench import BENCH
from idrid_jax.cli.blind import BLIND
from idrid_jax.cli.command import Command, Group
from idrid_jax.cli.evaluate import EVALUATE
from idrid_jax.cli.grade import GRADE
from idrid_jax.cli.interpolate import INTERPOLATE
from idrid_jax.cli.parsing import HELP, PROGRAM, describe, expand_config_path, parse
from idrid_jax.cli.phantom import PHANTOM
from idrid_jax.cli.plan import PLAN
from idrid_jax.cli.prepare import PREPARE
from idrid_jax.cli.report import REPORT
from idrid_jax.cli.sample import SAMPLE
from idrid_jax.cli.sweep import SWEEP
from idrid_jax.cli.train import TRAIN
from idrid_jax.errors import UserError, suggest_name

COMMANDS = {
    "phantom": PHANTOM,
    "prepare": PREPARE,
    "train": TRAIN,
    "sample": SAMPLE,
    "evaluate": EVALUATE,
    "grade": GRADE,
    "interpolate": INTERPOLATE,
    "augment": AUGMENT,
    "report": REPORT,
    "blind": BLIND,
    "sweep": SWEEP,
    "bench": BENCH,
    "plan": PLAN,
}

# Errors of the file system that concern a path or disk of the user's choice
USER_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit status: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C, or the command's own.
    """
    arguments = expand_config_path(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    with streams.tolerant():
        try:
            return _run(arguments, values)
        except Exception as error:
            explained = explain(error, values)
            if explained is None:
                raise
        except KeyboardInterrupt as error:
            explained = explain(error, values)
        message, status = explained
        print(f"{PROGRAM}: {message}", file=sys.stderr)
        return status


def _run(arguments: list[str], values: flags.FlagValues) -> int:
    if arguments[:1] == ["--version"]:
        import idrid_jax

        print(idrid_jax.__version__)
        return 0
    name, command, arguments = _find(arguments)
    if isinstance(command, Group):
        print(_overview(name, command))
        return 0 if arguments else 2
    if command.trains and not runtime.has_accelerator():
        runtime.keep_freed_memory()
    runtime.limit_blas_threads()
    runtime.enable_compilation_cache()
    command.define(values, [name, *arguments])
    if HELP & set(arguments):
        print(describe(name, command, values, arguments))
        return 0
    parse(name, values, arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # about damaged files; unreadable ones raise errors
        return command.run(values) or 0


def explain(error: BaseException, values: flags.FlagValues) -> tuple[str, int] | None:
    """Return a line for the user and the exit status, or None for a bug, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, OSError) and error.errno in USER_ERRORS:
        paths = [values[name].value for name in ("out", "workdir", "data_dir") if name in values]
        path = error.filename or next(iter(paths), "the disk")
        path = path[0] if isinstance(path, list) else path  # of a flag that is given several times
        return f"{path}: {os.strerror(error.errno)}; make room or choose another place", 2
    if platforms := runtime.missing_platforms():
        return f"JAX_PLATFORMS={platforms}: JAX finds no such device here; unset it, or set it to cpu", 2
    return None


def _find(arguments: list[str]) -> tuple[str, Command | Group, list[str]]:
    """Return the command that the first words name ("bench step") and the remaining arguments.

    It is a group if the words name one and nothing or a request for help follows. Raises UserError for another word.
    """
    words, found = (
        [],
        Group(
            "From IDRiD as downloaded to trained generators, measured samples and a class-balanced synthetic release.",
            COMMANDS,
        ),
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
            f"{program} COMMAND --help lists its flags.",
        ]
    )
