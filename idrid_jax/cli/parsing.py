"""absl's and ml_collections' flags, met kindly: every mistake is one line with the nearest name, and help fits a
screen."""

import importlib.util
import re
import textwrap
from pathlib import Path

from absl import flags

from idrid_jax.errors import UserError, suggest_name

PROGRAM = "idrid-jax"
HELP = {"-h", "--help", "-help", "--helpfull"}
PATHS = {"out", "release", "data_dir", "workdir"}  # flags that name one


def parse(name: str, values: flags.FlagValues, arguments: list[str]) -> None:
    """Sets the flags. Raises UserError for an unknown flag or field, a value of another type, or a stray word."""
    _check_fields(arguments)
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
    for flag in values:  # within any bounds, to absl
        if isinstance(given := values[flag].value, float) and given != given:
            raise UserError(f"{name}: --{flag}=nan: not a number")
    for flag in PATHS & set(values):
        if given := values[flag].value:  # the shell leaves --flag=~/x alone
            expanded = [str(Path(path).expanduser()) for path in (given if isinstance(given, list) else [given])]
            values[flag].value = expanded if isinstance(given, list) else expanded[0]
    if stray:
        raise UserError(f"{name}: {stray[0]!r} belongs to no flag; see {PROGRAM} {name} --help")


def _plain(message: str) -> str:
    """What absl and ml_collections say of a value, without Python's words."""
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


def _check_fields(arguments: list[str]) -> None:
    """Refuses a --config.FIELD that the configuration does not have, which ml_collections meets with a traceback."""
    path = None
    for i, argument in enumerate(arguments):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
        if match:
            path = match[1] if match[1] is not None else (arguments[i + 1] if i + 1 < len(arguments) else "")
    overrides = [match[1] for argument in arguments if (match := re.match(r"--?(?:no)?config\.([^=]+)", argument))]
    if path is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]}: name a file first, such as --config configs/cgan32.py")
        return
    if not path:
        raise UserError("--config has no value: name a file such as configs/cgan32.py")
    from idrid_jax.config import fields

    config = _load_config(path)
    known = dict(fields(config))
    for name in overrides:
        if members := [field for field in known if field.startswith(f"{name}.")]:
            raise UserError(f"--config.{name}: a group of fields; name one of them: {', '.join(members)}")
        if name not in known:
            raise UserError(f"--config.{name}: {path} has no such field; {suggest_name(name, known)}")


def _load_config(path: str):
    """What get_config of a file returns. Raises UserError where it has none or fails."""
    import ml_collections

    if not Path(path).is_file():
        if Path(path).exists():
            raise UserError(f"--config {path}: is no file; the project's own lie in configs/")
        near = sorted({file.name for folder in (Path(path).parent, Path("configs")) for file in folder.glob("*.py")})
        hint = suggest_name(f"{Path(path).stem}.py", near) + "; " if near else ""
        hint += "the project's own lie in configs/"
        raise UserError(f"--config {path}: no such file; {hint}")
    if Path(path).suffix != ".py":
        raise UserError(f"--config {path}: not a Python file; the project's own lie in configs/")
    try:
        spec = importlib.util.spec_from_file_location("_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may do
        raise UserError(f"--config {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config {path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def describe(name: str, summary: str, example: str, values: flags.FlagValues) -> str:
    """What `COMMAND --help` prints."""
    lines = [f"{PROGRAM} {name}: {summary}", "", f"  {PROGRAM} {name} {example}", ""]
    shown = [values[flag] for flag in values if "." not in flag]
    names = [f"--[no]{flag.name}" if flag.default is True else f"--{flag.name}" for flag in shown]
    width = max(map(len, names)) + 2
    for option, flag in zip(names, shown, strict=True):
        required = any("other than None" in validator.message for validator in flag.validators)  # where absl keeps it
        needed = " (needed)" if required else ""
        default = "" if flag.boolean or flag.default in (None, "", []) else f" [{flag.default_as_str.strip(chr(39))}]"
        text = textwrap.wrap(flag.help + needed + default, 116 - width)
        lines += [f"  {option:{width}}{text[0]}", *(" " * (width + 2) + line for line in text[1:])]
    if "config" in values:
        lines += ["", "  The fields stand in idrid_jax/config.py with their units; train --dry_run prints them."]
    return "\n".join(lines)
