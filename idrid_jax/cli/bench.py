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
        "batch", [], "images per update, with commas between, or max: the most that fits; empty: the network's own",
        flag_values=values,
    )
    flags.DEFINE_list("dtype", [], "float32, bfloat16, or both; empty: the configuration's", flag_values=values)
    flags.DEFINE_string("peer", "", "torch: the same update in PyTorch beside ours", flag_values=values)
    flags.DEFINE_integer("rounds", 9, "interleaved, after a warm-up", lower_bound=3, flag_values=values)


def _run_step(values):
    from idrid_jax.bench import step

    step.run(values.config, batches=values.batch, dtypes=values.dtype, peer=values.peer, rounds=values.rounds)


BENCH = Group(
    "measure how fast each part runs here, beside what one would pick instead",
    {
        "step": Command(
            "images/s of the compiled update that train calls, its memory and its share of the matrix rate",
            "--config configs/dcgan28.py --batch 128 --peer torch",
            _define_step,
            _run_step,
        ),
    },
)
