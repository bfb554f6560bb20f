"""`idrid-jax sample`: generate images by grade, as a release."""

import dataclasses

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import command_line
from idrid_jax.errors import UserError


def _define(values, argv):
    checkpoint.define(values)
    flags.DEFINE_string("out", None, "new folder for the images", required=True, flag_values=values)
    flags.DEFINE_integer("per_grade", None, "images of each grade", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "grade", None, "one grade, 0 to 4, with --count", lower_bound=0, upper_bound=4, flag_values=values
    )
    flags.DEFINE_integer(
        "count",
        None,
        "number of images, with --grade; alone for an unconditional generator",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "balance", False, "of each grade, as many as balance the real training set", flag_values=values
    )
    flags.DEFINE_enum("format", "jpg", ["jpg", "png"], "image format; IDRiD's tools expect jpg", flag_values=values)
    flags.DEFINE_float(
        "truncation",
        1.0,
        "factor on the latents; below 1 images are more typical and less diverse",
        lower_bound=0.0,
        upper_bound=2.0,
        flag_values=values,
    )
    flags.DEFINE_integer("quality", 95, "JPEG quality", lower_bound=1, upper_bound=100, flag_values=values)


def _run(values):
    given = [name for name in ("per_grade", "grade", "balance") if values[name].value is not values[name].default]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other: choose one")
    if values.grade is not None and values.count is None:
        raise UserError(f"--grade {values.grade}: say how many images with --count N")
    if values.count is not None and given and values.grade is None:
        raise UserError(f"--count {values.count}: it goes with --grade, or alone for an unconditional generator")
    if not checkpoint.is_process_0("sample"):
        return
    from idrid_jax.generation import release, sampling

    sampler = sampling.load_sampler(values.workdir, values.step, batch_statistics=values.batch_statistics)
    sampler = dataclasses.replace(sampler, truncation=values.truncation)
    options = dict(seed=values.seed, file_format=values.format, quality=values.quality)
    if not sampler.network.conditional:
        if given or values.count is None:
            instead = f", not --{given[0]}" if given else ""
            raise UserError(f"{sampler.config.network} is unconditional and has no grades: give --count N{instead}")
        out = release.write_images(sampler, values.out, values.count, **options)
        print(f"{values.count} images in {out}, an overview in {out / release.CONTACT_SHEET}")
        return
    counts = _grade_counts(values, sampler)
    out = release.write_release(sampler, values.out, counts, **options)
    print(f"{sum(counts)} images by grade {counts} as a release in {out}, an overview in {out / release.CONTACT_SHEET}")
    print(f"next: {command_line('prepare', '--release', out)}")


def _grade_counts(values, sampler) -> list[int]:
    """Return how many images of each grade the flags ask for."""
    from idrid_jax.data.layout import GRADES
    from idrid_jax.generation.release import balancing_counts

    if values.balance:
        return balancing_counts(sampler.run.counts)
    if values.per_grade is not None:
        return [values.per_grade] * len(GRADES)
    if values.grade is not None:
        return [values.count if grade == values.grade else 0 for grade in range(len(GRADES))]
    raise UserError("the number of images is missing: give --per_grade N, --grade G --count N, or --balance")


SAMPLE = Command(
    "generate images by grade, as a release in IDRiD's layout",
    "--workdir runs/cgan32 --out synthetic --balance",
    _define,
    _run,
)
