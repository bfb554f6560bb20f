"""Commands that draw images with a run's generator: sample, interpolate."""

import dataclasses
from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import PROGRAM
from idrid_jax.errors import UserError

# -- sample


def _define_sample(values, argv):
    checkpoint.define(values)
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
    flags.DEFINE_float(
        "truncation",
        1.0,
        "latents times so much: below 1 images are more typical and more alike",
        lower_bound=0.0,
        upper_bound=2.0,
        flag_values=values,
    )
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
    if checkpoint.another_process("sample"):
        return
    from idrid_jax.generation import sampling

    sampler = sampling.load(values.workdir, values.step, statistics=values.batch_statistics)
    sampler = dataclasses.replace(sampler, truncation=values.truncation)
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
    from idrid_jax.generation.sampling import balancing

    if values.balance:
        return balancing(sampler.run.counts)
    if values.per_grade is not None:
        return [values.per_grade] * len(GRADES)
    if values.grade is not None:
        return [values.count if grade == values.grade else 0 for grade in range(len(GRADES))]
    raise UserError("say how many: --per_grade N, or --grade G --count N, or --balance")


# -- interpolate


def _define_interpolate(values, argv):
    checkpoint.define(values)
    flags.DEFINE_string(
        "out", None, "a .png (a strip) or .gif (it goes on and back)", required=True, flag_values=values
    )
    flags.DEFINE_integer(
        "rows",
        None,
        "ways, each between latents of its own; empty: 5 for a conditional generator, 4 for others",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "frames", None, "images of one way; empty: 9 in a strip, 24 in a GIF", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer(
        "grade",
        None,
        "0 to 4, of every row; empty: a row of each grade in turn",
        lower_bound=0,
        upper_bound=4,
        flag_values=values,
    )
    flags.DEFINE_string(
        "grades",
        None,
        "0,4 or 0,1,2,3,4: the grade goes this way instead, the latent stays",
        flag_values=values,
    )


def _run_interpolate(values):
    from idrid_jax.generation import interpolation, sampling

    interpolation.check(values.out)
    if values.grade is not None and values.grades is not None:
        raise UserError("--grade and --grades exclude each other: take one")
    way = None if values.grades is None else _way(values.grades)
    if checkpoint.another_process("interpolate"):
        return
    sampler = sampling.load(values.workdir, values.step, statistics=values.batch_statistics)
    conditional = sampler.network.conditional
    for name in ("grade", "grades"):
        if not conditional and values[name].value is not None:
            raise UserError(f"{sampler.config.network} is unconditional, it has no grades: leave --{name} out")
    frames = values.frames or interpolation.FRAMES[Path(values.out).suffix.lower()]
    rows = values.rows or (5 if conditional else 4)
    if way is not None:
        images = interpolation.between_grades(sampler, way, rows, frames, seed=values.seed)
        said = f"grade {' to '.join(map(str, way))} of {rows} latents"
    else:
        grades = [row % 5 if values.grade is None else values.grade for row in range(rows)]
        images = interpolation.between_latents(sampler, grades, frames, seed=values.seed)
        said = f"{rows} ways between two latents" + (
            f", of grades {', '.join(map(str, grades))}" if conditional else ""
        )
    interpolation.write(images, values.out)
    print(f"{said}, {frames} images each, in {values.out}")


def _way(text) -> list[int]:
    """ "0,4" -> [0, 4]"""
    words = [word.strip() for word in text.split(",")]
    if len(words) < 2 or any(word not in ("0", "1", "2", "3", "4") for word in words):
        raise UserError(f"--grades={text}: give two grades or more, each 0 to 4, such as 0,4")
    return [int(word) for word in words]


SAMPLE = Command(
    "draw images by grade, as a release in IDRiD's layout",
    "--workdir runs/cgan32 --out synthetic --balance",
    _define_sample,
    _run_sample,
)
INTERPOLATE = Command(
    "ways between latents or grades, as a strip or an animation",
    "--workdir runs/cgan32 --out way.gif --grades 0,4",
    _define_interpolate,
    _run_interpolate,
)
