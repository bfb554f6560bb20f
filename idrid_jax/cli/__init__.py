"""The commands, the only package that defines flags. A command imports JAX and other slow packages when it runs."""

import sys
import warnings

from absl import flags

from idrid_jax import runtime
from idrid_jax.cli import streams
from idrid_jax.cli.augment import AUGMENT
from idrid_jax.cli.bench import BENCH
from idrid_jax.cli.blind import BLIND
from idrid_jax.cli.command import Command, Group
from idrid_jax.cli.errors import explain
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
