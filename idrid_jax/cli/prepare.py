"""`idrid-jax prepare`: read and audit a release, and build its TFDS dataset."""

import textwrap

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import command_line


def _define(values, argv):
    flags.DEFINE_string(
        "release",
        None,
        "IDRiD as downloaded: the folder with the zip files, the unpacked folders, one of them, or a folder above",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "folder for prepared data; default: $TFDS_DATA_DIR, or else ~/tensorflow_datasets",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "tfds",
        True,
        "build the TFDS dataset; --notfds fills the caches from the release directly, without TensorFlow",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "keep_leaks", False, "keep training photographs that are also in the test split", flag_values=values
    )
    flags.DEFINE_boolean(
        "keep_contradictions", False, "keep duplicates of a photograph that have different grades", flag_values=values
    )
    flags.DEFINE_boolean("overlap", False, "also list the photographs of part A that are in part B", flag_values=values)


def _run(values):
    from idrid_jax.data.prepare import prepare

    manifest, text = prepare(
        values.release,
        values.data_dir or None,
        tfds=values.tfds,
        keep_leaks=values.keep_leaks,
        keep_contradictions=values.keep_contradictions,
    )
    print(text)
    where = [f"--config.data.data_dir={values.data_dir}"] if values.data_dir else []
    if sum(manifest.counts["grading"]["train"]):
        print("next:", command_line("train", "--config", "configs/cgan32.py", "--workdir", "runs/cgan32", *where))
    else:
        print("training needs graded photographs (part B), which this release does not have")
    if values.overlap:
        _print_overlap(values.release)


def _print_overlap(release: str) -> None:
    from idrid_jax.data.audit import overlap
    from idrid_jax.data.release import read_release

    found = overlap(read_release(release))
    print(f"part A photographs that are in part B: {len(found)}")
    if len(found):
        print(textwrap.indent(found.to_string(index=False), "  "))


PREPARE = Command(
    "read and audit IDRiD as downloaded, build its TFDS dataset", "--release ~/Downloads/IDRiD", _define, _run
)
