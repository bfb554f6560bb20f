"""Flags by absl and ml_collections, with one-line errors that suggest the nearest name, and help that fits a screen."""

import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.errors import UserError, suggest_name

PROGRAM = "idrid-jax"
HELP = {"-h", "--help", "-help", "--helpfull"}
PATH_FLAGS = {"out", "release", "data_dir", "workdir"}
HELP_WIDTH = 120


def command_line(*words: object) -> str:
    """Return `idrid-jax WORDS` quoted for a shell."""
    return shlex.join([PROGRAM, *map(str, words)])


# -- Flags of several commands


def define_config(values: flags.FlagValues, argv: list[str], rest: str, example: str = "configs/cgan32.py") -> None:
    """Define --config FILE and the --config.FIELD that are in `argv`; `rest` ends the help text."""
    from ml_collections import config_flags

    help_text = f"a file such as {example}; --config.FIELD=VALUE changes a field{rest}"
    config_flags.DEFINE_config_file("config", None, help_text, flag_values=values, sys_argv=argv)


def define_data_dir(values: flags.FlagValues, default: str) -> None:
    """Define --data_dir of a command that reads a prepared release."""
    flags.DEFINE_string("data_dir", "", f"folder of the prepared data; default: {default}", flag_values=values)


# -- Parsing


class _WordOrNumberParser(flags.ArgumentParser):
    """Parser of --config.FIELD for a field that may be a word such as "auto"; `config.validated` checks which one."""

    def parse(self, argument):
        for number in (int, float):
            try:
                return number(argument) if isinstance(argument, str) else argument
            except ValueError:
                pass
        return argument


def expand_config_path(arguments: list[str]) -> list[str]:
    """Return `arguments` with ~ expanded in the value of --config, which a shell does not do in --config=~/FILE."""
    expanded = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, path = argument.partition("=")
        if name in ("--config", "-config"):
            if equals:
                expanded[i] = f"{name}={Path(path).expanduser() if path else ''}"
            elif arguments[i + 1 :]:
                expanded[i + 1] = str(Path(arguments[i + 1]).expanduser())
    return expanded


def parse(name: str, values: flags.FlagValues, arguments: list[str]) -> None:
    """Set `values` from the arguments of the command `name`.

    Raises:
      UserError: an unknown flag or field, a value of another type, or a stray word.
    """
    _prepare_config_flags(arguments)
    try:
        stray = values([name, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [f"--{flag}" for flag in values if "." not in flag]
        raise UserError(f"{name}: no flag --{error.flagname}; {suggest_name(f'--{error.flagname}', known)}") from error
    except flags.Error as error:
        message = str(error).splitlines()[0].rstrip(".")
        missing = re.search(r"flag --(\w+)=None", message)
        message = f"--{missing[1]} is missing; see {PROGRAM} {name} --help" if missing else _plain(message)
        raise UserError(f"{name}: {message}") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{name}: {_plain(' '.join(str(error).split()))}") from error
    for flag in values:
        if isinstance(value := values[flag].value, float) and value != value:  # NaN passes absl's bounds
            raise UserError(f"{name}: --{flag}=nan: not a number")
    for flag in ("workdir", "out", "release", "answers"):
        if flag in values and values[flag].default != "" and values[flag].value in ("", [""]):
            raise UserError(f"{name}: --{flag} is empty: name a path")
    for flag in PATH_FLAGS & set(values):
        if value := values[flag].value:  # a shell does not expand the ~ of --flag=~/x
            paths = [str(Path(path).expanduser()) for path in (value if isinstance(value, list) else [value])]
            values[flag].value = paths if isinstance(value, list) else paths[0]
    if stray:
        raise UserError(f"{name}: {stray[0]!r} belongs to no flag; see {PROGRAM} {name} --help")


def _plain(message: str) -> str:
    """Rewrite a message of absl or ml_collections about a value without Python's terms."""
    for pattern, plain in (
        (r"invalid literal for int\(\) with base 10: .*", "not a whole number"),
        (r"could not convert string to float: .*", "not a number"),
        (r"\('Non-boolean argument to boolean flag', .*\)", "not true or false"),
        (
            r"Found (--\S+) in argv before a value for --config was specified",
            r"\1 stands before --config FILE: put it after",
        ),
        (r"Missing value for flag (--\S+)", r"\1 has no value: write \1=VALUE"),
        (r"^flag (--[^:=]+=)", r"\1"),
    ):
        message = re.sub(pattern, plain, message)
    return message


def _prepare_config_flags(arguments: list[str]) -> None:
    """Let ml_collections parse words and numbers; raise UserError for a --config.FIELD that the configuration lacks.

    For such a field ml_collections raises errors of several types, without the nearest name.
    """
    overrides = [match[1] for argument in arguments if (match := re.match(r"--?(?:no)?config\.([^=]+)", argument))]
    path = config_path(arguments)
    if path is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]}: name a file first, such as --config configs/cgan32.py")
        return
    if not path:
        raise UserError("--config has no value: name a file such as configs/cgan32.py")
    from ml_collections import config_flags

    from idrid_jax.config import WordOrNumber, flatten

    config_flags.register_flag_parser_for_type(WordOrNumber, _WordOrNumberParser())
    known = flatten(load_config(path))
    for name in overrides:
        if members := [field for field in known if field.startswith(f"{name}.")]:
            raise UserError(f"--config.{name}: a group of fields; name one of them: {', '.join(members)}")
        if name not in known:
            raise UserError(f"--config.{name}: {path} has no such field; {suggest_name(name, known)}")


def config_path(arguments: list[str]) -> str | None:
    """Return the value of the last --config in `arguments` ("" if it has none), or None without --config."""
    path = None
    for i, argument in enumerate(arguments):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            following = arguments[i + 1] if arguments[i + 1 :] else ""
            path = match[1] if match[1] is not None else ("" if following.startswith("--") else following)
    return path


def load_config(path: str):
    """Return the ConfigDict that get_config() of the file at `path` returns.

    Raises:
      UserError: there is no such file, it fails, or it returns something else.
    """
    import ml_collections

    if not Path(path).is_file():
        if Path(path).exists():
            raise UserError(f"--config {path}: not a file; the project's configurations are in configs/")
        near = sorted({file.name for folder in (Path(path).parent, Path("configs")) for file in folder.glob("*.py")})
        hint = suggest_name(f"{Path(path).stem}.py", near) + "; " if near else ""
        raise UserError(f"--config {path}: no such file; {hint}the project's configurations are in configs/")
    if Path(path).suffix != ".py":
        raise UserError(f"--config {path}: not a Python file; the project's configurations are in configs/")
    try:
        spec = importlib.util.spec_from_file_location("_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"--config {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config {path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


# -- Help


def describe(name: str, command: Command, values: flags.FlagValues, arguments: list[str]) -> str:
    """Return the text of `COMMAND --help`; with --config FILE it lists the configuration's fields, too."""
    lines = [f"{PROGRAM} {name}: {command.summary}", "", f"  {PROGRAM} {name} {command.example}", ""]
    shown = [values[flag] for flag in values if "." not in flag]
    rows = []
    for flag in shown:
        option = f"--[no]{flag.name}" if flag.default is True else f"--{flag.name}"
        required = any("other than None" in validator.message for validator in flag.validators)  # absl marks it so
        needed = " (needed)" if required else ""
        default = "" if flag.boolean or flag.default in (None, "", []) else f" [{flag.default_as_str.strip(chr(39))}]"
        rows.append((option, flag.help + needed + default))
    lines += _columns(rows)
    if "config" in values:
        path = config_path(arguments)
        lines += [
            "",
            *(_describe_fields(path) if path else [f"{PROGRAM} {name} --config FILE --help lists the fields."]),
        ]
    return "\n".join(lines)


def _describe_fields(path: str) -> list[str]:
    """Return the lines that document every field with its value in the configuration file at `path`."""
    from idrid_jax import config as config_lib

    values, sections = config_lib.flatten(load_config(path)), {}
    for field in config_lib.FIELDS:
        value = values.get(field.name, field.default)
        mark = "*" if value != field.default else " "
        text = f"{value if value != '' else '(empty)'} {field.unit}".rstrip()
        rows = sections.setdefault(field.name.rpartition(".")[0], [])
        rows.append((f"{mark} {field.name:30}{text}", config_lib.describe(field)))
    width = max(len(left) for rows in sections.values() for left, _ in rows)
    lines = [f"fields of {path}; * = not the default; (resume) = may change when a run resumes"]
    for rows in sections.values():
        lines += ["", *_columns(rows, width)]
    return lines


def _columns(rows: list[tuple[str, str]], width: int = 0) -> list[str]:
    """Return two columns, the second one wrapped at HELP_WIDTH."""
    width = min(56, max([width, *(len(left) for left, _ in rows)]))
    lines = []
    for left, text in rows:
        wrapped = textwrap.wrap(text, HELP_WIDTH - width - 4)
        first, rest = ("", wrapped) if len(left) > width else (wrapped[0], wrapped[1:])
        lines += [f"  {left:{width}}  {first}".rstrip(), *(" " * (width + 4) + line for line in rest)]
    return lines
