"""Commands that make releases and make them ready: phantom, prepare."""

import textwrap

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import PROGRAM
from idrid_jax.errors import UserError

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


def _counts(values, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in values[name].value)
    except ValueError as error:
        raise UserError(f"--{name}={','.join(values[name].value)}: give whole numbers with commas between") from error


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


PHANTOM = Command(
    "draw a made-up release to try everything on", "--out /tmp/phantom", _define_phantom, _run_phantom
)
PREPARE = Command(
    "read and audit IDRiD as downloaded, build its TFDS dataset",
    "--release ~/Downloads/IDRiD",
    _define_prepare,
    _run_prepare,
)
