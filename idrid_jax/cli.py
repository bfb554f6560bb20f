"""The commands, and the only place that knows flags. Heavy imports wait until a command needs them."""

import dataclasses
import errno
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags

from idrid_jax.command_line import PROGRAM, describe, parse
from idrid_jax.errors import UserError
from idrid_jax.words import nearest


@dataclasses.dataclass(frozen=True)
class Command:
    """`define` adds its flags; `run` takes their values."""

    summary: str
    example: str
    define: Callable[[flags.FlagValues, list[str]], None]
    run: Callable[[flags.FlagValues], None]


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    warnings.filterwarnings("ignore", module="PIL")  # of what a damaged file holds; what cannot be read is refused
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0 if arguments else 2
        if arguments[0] == "--version":
            import idrid_jax

            print(idrid_jax.__version__)
            return 0
        name, *arguments = arguments
        if name not in COMMANDS:
            raise UserError(f"{name}: no such command; {nearest(name, COMMANDS)}")
        command = COMMANDS[name]
        command.define(values, [name, *arguments])
        if {"-h", "--help", "-help", "--helpfull"} & set(arguments):
            print(describe(name, command.summary, command.example, values))
            return 0
        parse(name, values, arguments)
        command.run(values)
        return 0
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in USERS:
            raise
        places = [values[name].value for name in ("out", "workdir", "data_dir") if name in values]
        place = error.filename or next(iter(places), "the disk")
        print(f"{PROGRAM}: {place}: {os.strerror(error.errno)}; make room or choose another place", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130


# -- phantom


def _define_phantom(values, argv):
    flags.DEFINE_string("out", None, "new folder for the release", required=True, flag_values=values)
    flags.DEFINE_integer("seed", 0, "the release is a function of the options and this", flag_values=values)
    flags.DEFINE_list("train", "39,6,39,21,14", "training photographs by grade 0 to 4", flag_values=values)
    flags.DEFINE_list("test", "10,2,9,6,4", "test photographs by grade 0 to 4", flag_values=values)
    flags.DEFINE_list("segmentation", "8,4", "photographs with lesion masks, training and test", flag_values=values)
    flags.DEFINE_boolean("localization", True, "write part C: disc and fovea centres", flag_values=values)
    flags.DEFINE_integer(
        "height", 178, "of a photograph, in pixels, 64 to 2848; the width follows IDRiD's 3:2", flag_values=values
    )


def _run_phantom(values):
    from idrid_jax.data import phantom

    out = phantom.draw_release(
        values.out,
        seed=values.seed,
        train=_counts(values, "train"),
        test=_counts(values, "test"),
        segmentation=_counts(values, "segmentation"),
        localization=values.localization,
        height=values.height,
    )
    print(f"phantom release (made up: no photograph of any patient) in {out}\nnext: {PROGRAM} prepare --release {out}")


# -- prepare


def _define_prepare(values, argv):
    flags.DEFINE_string(
        "release",
        None,
        "IDRiD as downloaded: the folder with the zips, the unpacked folders, one of them, or a folder around them",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir", "", "where prepared data go; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets", flag_values=values
    )
    flags.DEFINE_boolean(
        "tfds",
        True,
        "build the TFDS dataset; --notfds fills caches straight from the release, without TensorFlow",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "keep_leaks", False, "keep training photographs that are also in the test split", flag_values=values
    )
    flags.DEFINE_boolean(
        "keep_contradictions", False, "keep copies of one photograph that have different grades", flag_values=values
    )
    flags.DEFINE_boolean("overlap", False, "also list the photographs of part A that are in part B", flag_values=values)


def _run_prepare(values):
    from idrid_jax.data.prepare import prepare

    _, text = prepare(
        values.release,
        values.data_dir or None,
        tfds=values.tfds,
        keep_leaks=values.keep_leaks,
        keep_contradictions=values.keep_contradictions,
    )
    print(text)
    where = f" --config.data.data_dir={values.data_dir}" if values.data_dir else ""
    print(f"next: {PROGRAM} train --config configs/cgan32.py --workdir runs/cgan32{where}")
    if values.overlap:
        from idrid_jax.data.audit import overlap
        from idrid_jax.data.release import read_release

        found = overlap(read_release(values.release))
        print(f"part A photographs that are in part B: {len(found)}")
        if len(found):
            print(textwrap.indent(found.to_string(index=False), "  "))


# -- train


def _define_train(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/cgan32.py; --config.FIELD=VALUE changes a field",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir", None, "the run's folder; the same command again resumes", required=True, flag_values=values
    )
    flags.DEFINE_boolean(
        "dry_run", False, "print the layers and the resolved configuration, and stop", flag_values=values
    )


def _run_train(values):
    from idrid_jax import config as config_lib

    if values.config is None:
        raise UserError("--config is missing: name a file such as configs/cgan32.py")
    config = values.config
    config_lib.check(config)
    from idrid_jax.evaluation.run import snapshot_measures
    from idrid_jax.training import build, loop

    if values.dry_run:
        print(build.table(config))
        print(json.dumps(config.to_dict(), indent=2))
        return
    from idrid_jax.data import cache

    manifest = cache.prepared(config.data.data_dir or None, config.data.release)  # first: it may be missing
    print(build.table(config))
    print(
        f"release {manifest.name} ({manifest.fingerprint[:12]}), "
        f"training photographs by grade: {manifest.counts['grading']['train']}",
        flush=True,
    )
    workdir = Path(values.workdir)
    state = loop.train(config, workdir, on_snapshot=(snapshot_measures,))
    step = int(state.step)
    if step < loop.steps(config.total_kimg, config):
        return  # interrupted, and said so
    print(
        f"step {step} ({step * config.batch_size / 1000:g} kimg): images, stats.jsonl and checkpoints in {workdir}\n"
        f"next: {PROGRAM} evaluate --workdir {workdir}"
    )


# -- sample


def _define_sample(values, argv):
    _define_checkpoint(values)
    flags.DEFINE_string("out", None, "new folder for the images", required=True, flag_values=values)
    flags.DEFINE_integer("per_grade", None, "as many of each grade", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "grade", None, "one grade, 0 to 4, with --count", lower_bound=0, upper_bound=4, flag_values=values
    )
    flags.DEFINE_integer(
        "count",
        None,
        "how many; with --grade, or alone for an unconditional generator",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "balance", False, "as many of each grade as it takes to level the real training set", flag_values=values
    )
    flags.DEFINE_enum("format", "jpg", ["jpg", "png"], "of the images; IDRiD's tools expect jpg", flag_values=values)
    flags.DEFINE_integer("quality", 95, "of JPEG", lower_bound=1, upper_bound=100, flag_values=values)


def _run_sample(values):
    asked = [
        name
        for name in ("per_grade", "grade", "balance")
        if values[name].value is not None and values[name].value is not False
    ]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} exclude each other: take one")
    graded, counted = values.grade is not None, values.count is not None
    if (graded and not counted) or (counted and asked and not graded):
        raise UserError("--count goes with --grade, or alone for an unconditional generator: --grade G --count N")
    from idrid_jax import sampling

    sampler = sampling.load(values.workdir, values.step)
    options = dict(seed=values.seed, suffix=values.format, quality=values.quality)
    if not sampler.network.conditional:
        if asked or values.count is None:
            raise UserError(
                f"{sampler.config.network} is unconditional, it has no grades: take --count N alone"
                + (f", not --{asked[0]}" if asked else "")
            )
        out = sampling.write_images(sampler, values.out, values.count, **options)
        print(f"{values.count} images in {out}, all at once in {out / sampling.SHEET}")
        return
    counts = _grade_counts(values, sampler)
    out = sampling.write_release(sampler, values.out, counts, **options)
    print(
        f"{sum(counts)} images by grade {counts} as a release in {out}, all at once in {out / sampling.SHEET}\n"
        f"next: {PROGRAM} prepare --release {out}"
    )


def _grade_counts(values, sampler) -> list[int]:
    """Images of each grade that the flags ask of a conditional generator."""
    from idrid_jax.data.release import GRADES
    from idrid_jax.sampling import balancing

    if values.balance:
        return balancing(sampler.run.counts)
    if values.per_grade is not None:
        return [values.per_grade] * len(GRADES)
    if values.grade is not None:
        return [values.count if grade == values.grade else 0 for grade in range(len(GRADES))]
    raise UserError("say how many: --per_grade N, or --grade G --count N, or --balance")


# -- evaluate


def _define_evaluate(values, argv):
    _define_checkpoint(values)
    flags.DEFINE_integer(
        "count", None, "generated images; empty: as many as training photographs", lower_bound=2, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "where the release is prepared; empty: where the run found it", flag_values=values
    )


def _run_evaluate(values):
    from idrid_jax.evaluation import protocol, run

    result = run.evaluate(
        values.workdir, count=values.count, seed=values.seed, step=values.step, data_dir=values.data_dir
    )
    of = result["of"]
    print(
        f"{of['network']} at step {of['step']} ({of['kimg']:g} kimg) on release {of['release']} "
        f"({of['fingerprint'][:12]}), {of['size']}x{of['size']}x{of['channels']}, {of['crop']}\n"
    )
    print(protocol.table(result, thesis=of["network"] == "dcgan28"))
    print(f"\nwritten to {Path(values.workdir) / run.NAME}")


def _define_checkpoint(values):
    flags.DEFINE_string("workdir", None, "of idrid-jax train", required=True, flag_values=values)
    flags.DEFINE_integer("step", None, "of a checkpoint; empty: the newest", flag_values=values)
    flags.DEFINE_integer(
        "seed",
        0,
        "the images are a function of the checkpoint and this",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=values,
    )


# What the file system says of a path or a disk that the user chose
USERS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip

COMMANDS = {
    "phantom": Command(
        "draw a made-up release to try everything on", "--out /tmp/phantom", _define_phantom, _run_phantom
    ),
    "prepare": Command(
        "read and audit IDRiD as downloaded, build its TFDS dataset",
        "--release ~/Downloads/IDRiD",
        _define_prepare,
        _run_prepare,
    ),
    "train": Command(
        "train a generator, or go on with it",
        "--config configs/cgan32.py --workdir runs/cgan32 --config.total_kimg=200",
        _define_train,
        _run_train,
    ),
    "sample": Command(
        "draw images by grade, as a release in IDRiD's layout",
        "--workdir runs/cgan32 --out synthetic --balance",
        _define_sample,
        _run_sample,
    ),
    "evaluate": Command(
        "PSNR and SSIM beside what real photographs give", "--workdir runs/cgan32", _define_evaluate, _run_evaluate
    ),
}


def _counts(values, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in values[name].value)
    except ValueError as error:
        raise UserError(f"--{name}={','.join(values[name].value)}: give whole numbers with commas between") from error


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "From IDRiD as downloaded to trained generators, measured samples and a class-balanced synthetic release.",
            "",
            f"usage: {PROGRAM} COMMAND [--flag=value ...]",
            "",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help tells its flags.",
        ]
    )
