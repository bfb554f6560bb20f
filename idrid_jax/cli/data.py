"""Commands that make releases, make them ready, and show what augmentation makes of them: phantom, prepare, augment."""

import textwrap
from pathlib import Path

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


# -- augment


def _define_augment(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/cgan32.py, with --config.augment.FIELD=VALUE as train has; empty: default strengths",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string("out", None, "the sheet, a .png", required=True, flag_values=values)
    flags.DEFINE_string("data_dir", "", "where the release is prepared; empty: where --config says", flag_values=values)
    flags.DEFINE_integer(
        "size", None, "side of an image in pixels; empty: the network's, or 128", lower_bound=16, flag_values=values
    )
    flags.DEFINE_integer("rows", 5, "photographs, of each grade in turn", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("columns", 8, "the first as it is, the others augmented", lower_bound=2, flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "the sheet is a function of the options and this", lower_bound=0, upper_bound=2**32 - 1,
        flag_values=values,
    )  # fmt: skip


def _run_augment(values):
    from idrid_jax import config as config_lib

    out = Path(values.out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out {out}: name a file that ends in .png")
    config = values.config
    if config is None:
        config = config_lib.default_config()
    else:
        config_lib.check(config)
    import jax
    import numpy as np

    from idrid_jax.data import atomic, cache
    from idrid_jax.data.layout import GRADES
    from idrid_jax.data.manifest import find_prepared
    from idrid_jax.generation.sampling import encode
    from idrid_jax.images import image_grid, to_float, to_uint8
    from idrid_jax.models import NETWORKS
    from idrid_jax.training import augment, build

    strengths = build.strengths(config)
    if strengths == augment.Strengths():
        raise UserError("config.augment: every transform is at 0, there is nothing to show: set one")
    network = NETWORKS.get(config.network)
    manifest = find_prepared(values.data_dir or config.data.data_dir or None, config.data.release)
    split = cache.load(
        manifest,
        "train",
        size=values.size or (network.size if network else 128),
        channels=network.channels if network else 3,
        crop=config.data.crop,
    )
    ranks, seen = {}, [0] * len(GRADES)  # of the first of each grade, the second, ...
    for i in np.random.default_rng(values.seed).permutation(len(split.grades)).tolist():
        grade = int(split.grades[i])
        ranks[i] = seen[grade], grade
        seen[grade] += 1
    rows = sorted(ranks, key=ranks.get)[: values.rows]
    photographs = split.images[rows]
    apply = jax.jit(lambda key: to_uint8(augment.apply(to_float(photographs), key, 1.0, strengths)))
    keys = jax.random.split(jax.random.key(values.seed), values.columns - 1)
    columns = np.stack([photographs, *map(np.asarray, map(apply, keys))], 1)
    picture = image_grid(columns.reshape(-1, *columns.shape[2:]), values.columns)
    atomic.write_bytes(out, encode(np.asarray(picture), "png"))
    for number, i in enumerate(rows, 1):
        print(f"row {number}: {split.ids[i]}, grade {split.grades[i]}")
    print(f"first as it is, then with p = 1: {_told(strengths)}\nwritten to {out}")


def _told(strengths) -> str:
    """What the transforms may do, those that are on."""
    s = strengths
    return ", ".join(
        text
        for amount, text in (
            (s.rotation, f"rotation within {s.rotation:g} degrees"),
            (s.zoom, f"zoom within {s.zoom:.0%}"),
            (s.shift, f"shift within {s.shift:.0%} of the side"),
            (s.brightness, f"brightness within {s.brightness:.0%}"),
            (s.contrast, f"contrast within {s.contrast:.0%}"),
            (s.saturation, f"saturation within {s.saturation:.0%}"),
        )
        if amount
    )


PHANTOM = Command("draw a made-up release to try everything on", "--out /tmp/phantom", _define_phantom, _run_phantom)
PREPARE = Command(
    "read and audit IDRiD as downloaded, build its TFDS dataset",
    "--release ~/Downloads/IDRiD",
    _define_prepare,
    _run_prepare,
)
AUGMENT = Command(
    "a sheet of photographs as augmentation shows them to the discriminator",
    "--config configs/cgan32.py --out sheet.png --config.augment.rotation=20",
    _define_augment,
    _run_augment,
)
