"""`idrid-jax phantom`: write a release of made-up photographs."""

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import command_line
from idrid_jax.errors import UserError


def _define(values, argv):
    flags.DEFINE_string("out", None, "new folder for the release", required=True, flag_values=values)
    flags.DEFINE_integer("seed", 0, "random seed", flag_values=values)
    flags.DEFINE_list("train", "39,6,39,21,14", "training photographs of grades 0 to 4", flag_values=values)
    flags.DEFINE_list("test", "10,2,9,6,4", "test photographs of grades 0 to 4", flag_values=values)
    flags.DEFINE_list("segmentation", "8,4", "training and test photographs with lesion masks", flag_values=values)
    flags.DEFINE_boolean("localization", True, "write part C: centers of optic disc and fovea", flag_values=values)
    flags.DEFINE_integer(
        "height", 178, "height of a photograph in pixels, 64 to 2848; the aspect ratio is 3:2", flag_values=values
    )


def _run(values):
    from idrid_jax.data import phantom

    out = phantom.make_release(
        values.out,
        seed=values.seed,
        train=_counts(values, "train"),
        test=_counts(values, "test"),
        segmentation=_counts(values, "segmentation"),
        localization=values.localization,
        height=values.height,
    )
    print(f"phantom release (made up: no photograph of any patient) in {out}")
    print(f"next: {command_line('prepare', '--release', out)}")


def _counts(values, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in values[name].value)
    except ValueError as error:
        raise UserError(f"--{name}={','.join(values[name].value)}: give whole numbers separated by commas") from error


PHANTOM = Command("write a release of made-up photographs to try everything on", "--out /tmp/phantom", _define, _run)
