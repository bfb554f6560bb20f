"""`idrid-jax interpolate`: generate images between latents or grades, as a strip or an animation."""

from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.errors import UserError


def _define(values, argv):
    checkpoint.define(values)
    flags.DEFINE_string(
        "out", None, "a .png (strip) or a .gif (runs forward and back)", required=True, flag_values=values
    )
    flags.DEFINE_integer(
        "rows",
        None,
        "interpolations, one per row; default: 5 for a conditional generator, 4 for others",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "frames", None, "images per interpolation; default: 9 in a strip, 24 in a GIF", lower_bound=2,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "grade",
        None,
        "grade of all rows, 0 to 4; default: a row of each grade in turn",
        lower_bound=0,
        upper_bound=4,
        flag_values=values,
    )
    flags.DEFINE_string(
        "grades",
        None,
        "interpolate between these grades with fixed latents, such as 0,4 or 0,1,2,3,4",
        flag_values=values,
    )


def _run(values):
    from idrid_jax.generation import interpolation, sampling

    interpolation.check_out(values.out)
    if values.grade is not None and values.grades is not None:
        raise UserError("--grade and --grades exclude each other: choose one")
    path = None if values.grades is None else _parse_grades(values.grades)
    if not checkpoint.is_process_0("interpolate"):
        return
    sampler = sampling.load_sampler(values.workdir, values.step, batch_statistics=values.batch_statistics)
    conditional = sampler.network.conditional
    for name in ("grade", "grades"):
        if not conditional and values[name].value is not None:
            raise UserError(f"{sampler.config.network} is unconditional and has no grades: do not give --{name}")
    frames = values.frames or interpolation.FRAMES[Path(values.out).suffix.lower()]
    rows = values.rows or (5 if conditional else 4)
    if path is not None:
        images = interpolation.interpolate_grades(sampler, path, rows, frames, seed=values.seed)
        text = f"grade {' to '.join(map(str, path))} of {rows} latents"
    else:
        grades = [row % 5 if values.grade is None else values.grade for row in range(rows)]
        images = interpolation.interpolate_latents(sampler, grades, frames, seed=values.seed)
        text = f"{rows} interpolations between two latents"
        text += f", of grades {', '.join(map(str, grades))}" if conditional else ""
    interpolation.save(images, values.out)
    print(f"{text}, {frames} images each, in {values.out}")


def _parse_grades(text: str) -> list[int]:
    """Parse "0,4" to [0, 4]."""
    words = [word.strip() for word in text.split(",")]
    if len(words) < 2 or any(word not in ("0", "1", "2", "3", "4") for word in words):
        raise UserError(f"--grades={text}: give two grades or more, each 0 to 4, such as 0,4")
    return [int(word) for word in words]


INTERPOLATE = Command(
    "generate images between latents or grades, as a strip or an animation",
    "--workdir runs/cgan32 --out grades.gif --grades 0,4",
    _define,
    _run,
)
