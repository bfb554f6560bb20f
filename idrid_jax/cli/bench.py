"""Commands that measure speed, such as `idrid-jax bench step`. Each has a module of its name in `idrid_jax/bench/`.

One JSON line per measurement on stdout, then a table for people; notes on stderr.
"""

from absl import flags

from idrid_jax.cli.command import Command, Group
from idrid_jax.cli.parsing import define_config


def _define_step(values, argv):
    define_config(values, argv, "; default: the thesis's four networks")
    flags.DEFINE_list(
        "batch",
        [],
        "images per update, several separated by commas, or max for the largest that fits; default: the "
        "configuration's",
        flag_values=values,
    )
    flags.DEFINE_list("dtype", [], "float32, bfloat16, or both; default: the configuration's", flag_values=values)
    flags.DEFINE_string("peer", "", "torch: also measure the same update in PyTorch", flag_values=values)
    _define_rounds(values, 9)


def _run_step(values):
    from idrid_jax.bench import step

    step.run(values.config, batches=values.batch, dtypes=values.dtype, peer=values.peer, rounds=values.rounds)


def _define_layers(values, argv):
    flags.DEFINE_list("network", [], "dcgan28, cgan32, dcgan64, dcgan128; default: all four", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "float32 or bfloat16", flag_values=values)
    _define_rounds(values, 5)


def _run_layers(values):
    from idrid_jax.bench import layers

    layers.run(values.network, dtype=values.dtype, rounds=values.rounds)


def _define_input(values, argv):
    define_config(values, argv, "; default: dcgan28 at batch 128")
    flags.DEFINE_float("seconds", 75, "seconds to measure, without compilation", lower_bound=5, flag_values=values)


def _run_input(values):
    from idrid_jax.bench import input

    input.run(values.config, values.seconds)


def _define_prepare(values, argv):
    flags.DEFINE_string(
        "release", "", "a release, as in prepare; default: made-up photographs of IDRiD's size", flag_values=values
    )
    flags.DEFINE_integer("size", 256, "side of the result in pixels", flag_values=values)
    flags.DEFINE_integer("channels", 3, "3 (RGB) or 1 (grey)", flag_values=values)
    flags.DEFINE_string("crop", "field_of_view", "field_of_view or letterbox", flag_values=values)
    _define_rounds(values, 9)


def _run_prepare(values):
    from idrid_jax.bench import prepare

    prepare.run(values.release, size=values.size, channels=values.channels, crop=values.crop, rounds=values.rounds)


def _define_evaluate(values, argv):
    flags.DEFINE_integer("size", 64, "side of the images in pixels", flag_values=values)
    flags.DEFINE_integer("channels", 3, "3 (RGB) or 1 (grey)", flag_values=values)
    flags.DEFINE_integer("count", 128, "images in each of the two sets", lower_bound=2, flag_values=values)
    _define_rounds(values, 5)


def _run_evaluate(values):
    from idrid_jax.bench import evaluate

    evaluate.run(size=values.size, channels=values.channels, count=values.count, rounds=values.rounds)


def _define_rounds(values, default: int):
    flags.DEFINE_integer(
        "rounds", default, "interleaved rounds of measurement after a warm-up", lower_bound=3, flag_values=values
    )


BENCH = Group(
    "measure the speed of each part on this machine, next to an alternative",
    {
        "step": Command(
            "images/s of the compiled update that train runs, its memory and its share of the peak matrix rate",
            "--config configs/dcgan28.py --batch 128 --peer torch",
            _define_step,
            _run_step,
            trains=True,
        ),
        "layers": Command(
            "each convolution as lowered here, next to lax alone, and its share of the peak matrix rate",
            "--network dcgan64 --dtype float32",
            _define_layers,
            _run_layers,
            trains=True,
        ),
        "input": Command(
            "both input pipelines, how long steps wait for them, and train next to its step alone",
            "--config configs/dcgan28.py --seconds 75",
            _define_input,
            _run_input,
            trains=True,
        ),
        "prepare": Command(
            "photographs/s of decoding, cropping and resizing, next to decoding alone",
            "--release ~/Downloads/IDRiD --size 256",
            _define_prepare,
            _run_prepare,
        ),
        "evaluate": Command(
            "PSNR and SSIM of all pairs, next to scikit-image",
            "--size 64 --count 128",
            _define_evaluate,
            _run_evaluate,
        ),
    },
)
