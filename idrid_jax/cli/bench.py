"""Commands that measure: `idrid-jax bench step` and its like. Each has a file of its name in `idrid_jax/bench/`.

On stdout one JSON line per measured thing, at the end a table for people; notes go to stderr.
"""

from absl import flags

from idrid_jax.cli.command import Command, Group


def _define_step(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/cgan32.py, with --config.FIELD=VALUE as train has; empty: all four networks",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_list(
        "batch",
        [],
        "images per update, with commas between, or max: the most that fits; empty: the network's own",
        flag_values=values,
    )
    flags.DEFINE_list("dtype", [], "float32, bfloat16, or both; empty: the configuration's", flag_values=values)
    flags.DEFINE_string("peer", "", "torch: the same update in PyTorch beside ours", flag_values=values)
    flags.DEFINE_integer("rounds", 9, "interleaved, after a warm-up", lower_bound=3, flag_values=values)


def _run_step(values):
    from idrid_jax.bench import step

    step.run(values.config, batches=values.batch, dtypes=values.dtype, peer=values.peer, rounds=values.rounds)


def _define_layers(values, argv):
    flags.DEFINE_list("network", [], "dcgan28, cgan32, dcgan64, dcgan128; empty: all four", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "float32 or bfloat16", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "interleaved, after a warm-up", lower_bound=3, flag_values=values)


def _run_layers(values):
    from idrid_jax.bench import layers

    layers.run(values.network, dtype=values.dtype, rounds=values.rounds)


def _define_input(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/cgan32.py, with --config.FIELD=VALUE as train has; empty: dcgan28 at batch 128",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_float("seconds", 75, "to measure for, compilation left out", lower_bound=5, flag_values=values)


def _run_input(values):
    from idrid_jax.bench import input

    input.run(values.config, values.seconds)


def _define_prepare(values, argv):
    flags.DEFINE_string(
        "release", "", "as prepare takes it; empty: drawn photographs of IDRiD's size", flag_values=values
    )
    flags.DEFINE_integer("size", 256, "side of the result in pixels", flag_values=values)
    flags.DEFINE_integer("channels", 3, "3 (RGB) or 1 (grey)", flag_values=values)
    flags.DEFINE_string("crop", "field_of_view", "field_of_view or letterbox", flag_values=values)
    flags.DEFINE_integer("rounds", 9, "interleaved, after a warm-up", lower_bound=3, flag_values=values)


def _run_prepare(values):
    from idrid_jax.bench import prepare

    prepare.run(values.release, size=values.size, channels=values.channels, crop=values.crop, rounds=values.rounds)


def _define_evaluate(values, argv):
    flags.DEFINE_integer("size", 64, "side of the images in pixels", flag_values=values)
    flags.DEFINE_integer("channels", 3, "3 (RGB) or 1 (grey)", flag_values=values)
    flags.DEFINE_integer("count", 128, "images in each of the two sets", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "interleaved, after a warm-up", lower_bound=3, flag_values=values)


def _run_evaluate(values):
    from idrid_jax.bench import evaluate

    evaluate.run(size=values.size, channels=values.channels, count=values.count, rounds=values.rounds)


BENCH = Group(
    "measure how fast each part runs here, beside what one would pick instead",
    {
        "step": Command(
            "images/s of the compiled update that train calls, its memory and its share of the matrix rate",
            "--config configs/dcgan28.py --batch 128 --peer torch",
            _define_step,
            _run_step,
        ),
        "layers": Command(
            "each convolution as it is lowered here beside lax alone, and its share of the matrix rate",
            "--network dcgan64 --dtype float32",
            _define_layers,
            _run_layers,
        ),
        "input": Command(
            "both ways in from disk to device, what steps wait for them, and all of train beside its bare step",
            "--config configs/dcgan28.py --seconds 75",
            _define_input,
            _run_input,
        ),
        "prepare": Command(
            "photographs/s of decoding, cropping and resizing, beside decoding alone",
            "--release ~/Downloads/IDRiD --size 256",
            _define_prepare,
            _run_prepare,
        ),
        "evaluate": Command(
            "PSNR and SSIM of all pairs, beside scikit-image",
            "--size 64 --count 128",
            _define_evaluate,
            _run_evaluate,
        ),
    },
)
