"""`idrid-jax augment`: show what augmentation does to photographs."""

from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_config, define_data_dir
from idrid_jax.errors import UserError


def _define(values, argv):
    define_config(values, argv, "; default: the default strengths")
    flags.DEFINE_string("out", None, "the image to write, a .png", required=True, flag_values=values)
    define_data_dir(values, "what --config says")
    flags.DEFINE_integer(
        "size",
        None,
        "side of an image in pixels; default: the network's, or 128",
        lower_bound=16,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "rows", 5, "photographs, of grades 0 to 4 in turn, one per row", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "columns", 8, "images in a row: the photograph and its augmentations", lower_bound=2, flag_values=values
    )
    checkpoint.define_seed(values)


def _run(values):
    from idrid_jax import config as config_lib

    out = Path(values.out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out {out}: name a file that ends in .png")
    if values.config is None:
        config = config_lib.default_config()
    else:
        config = config_lib.validated(values.config)
    import jax
    import numpy as np

    from idrid_jax.data import atomic, cache
    from idrid_jax.data.manifest import find_prepared
    from idrid_jax.images import encode_image, image_grid, to_float, to_uint8
    from idrid_jax.models import NETWORKS
    from idrid_jax.training import augment

    strengths = augment.strengths_from_config(config)
    if strengths == augment.Strengths():
        raise UserError("config.augment: every transform is off, so there is nothing to show; set one")
    network = NETWORKS.get(config.network)
    manifest = find_prepared(values.data_dir or config.data.data_dir or None, config.data.release)
    split = cache.load(
        manifest,
        "train",
        size=values.size or (network.size if network else 128),
        channels=network.channels if network else 3,
        crop=config.data.crop,
    )
    chosen = _choose(split.grades, values.rows, values.seed)
    photographs = split.images[chosen]
    augmented = jax.jit(lambda key: to_uint8(augment.apply(to_float(photographs), key, 1.0, strengths)))
    keys = jax.random.split(jax.random.key(values.seed), values.columns - 1)
    columns = np.stack([photographs, *(np.asarray(augmented(key)) for key in keys)], axis=1)
    grid = image_grid(columns.reshape(-1, *columns.shape[2:]), values.columns)
    atomic.write_bytes(out, encode_image(np.asarray(grid), "png"))
    for row, index in enumerate(chosen, 1):
        print(f"row {row}: {split.ids[index]}, grade {split.grades[index]}")
    print(f"the photograph, then augmented with p = 1: {_describe(strengths)}\nwritten to {out}")


def _choose(grades, count: int, seed: int) -> list[int]:
    """Choose `count` photographs at random, of grades 0 to 4 in turn, and return their indices."""
    import numpy as np

    seen, order = {}, {}
    for index in np.random.default_rng(seed).permutation(len(grades)).tolist():
        grade = int(grades[index])
        order[index] = seen.get(grade, 0), grade  # the first of each grade, then the second of each, ...
        seen[grade] = seen.get(grade, 0) + 1
    return sorted(order, key=order.get)[:count]


def _describe(strengths) -> str:
    """Describe the transforms that are on."""
    texts = {
        "rotation": f"rotation up to {strengths.rotation:g} degrees",
        "zoom": f"zoom up to {strengths.zoom:.0%}",
        "shift": f"shift up to {strengths.shift:.0%} of the side",
        "brightness": f"brightness up to {strengths.brightness:.0%}",
        "contrast": f"contrast up to {strengths.contrast:.0%}",
        "saturation": f"saturation up to {strengths.saturation:.0%}",
    }
    return ", ".join(text for name, text in texts.items() if getattr(strengths, name))


AUGMENT = Command(
    "show photographs as augmentation changes them",
    "--config configs/cgan32.py --out augmented.png --config.augment.rotation=20",
    _define,
    _run,
)
