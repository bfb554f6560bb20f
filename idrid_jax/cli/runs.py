"""Commands that fill a run's folder: train, evaluate."""

import json
import sys
from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import PROGRAM
from idrid_jax.errors import UserError

# -- train


def _define_train(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/cgan32.py; --config.FIELD=VALUE changes a field (needed)",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string(
        "workdir", None, "the run's folder; the same command again resumes", required=True, flag_values=values
    )
    flags.DEFINE_boolean(
        "dry_run", False, "print the layers and the resolved configuration, and stop", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "of several processes: process 0's HOST:PORT; not needed under srun, mpirun, on TPU pods and Kubernetes",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is, from 0", lower_bound=0, flag_values=values)
    flags.DEFINE_float("join_timeout", 300.0, "seconds to wait for the others", lower_bound=0, flag_values=values)


def _run_train(values):
    from idrid_jax import config as config_lib

    if values.config is None:
        raise UserError("--config is missing: name a file such as configs/cgan32.py")
    config = values.config
    config_lib.check(config)
    automatic, config = config_lib.automatic(config), config_lib.resolved(config)
    from idrid_jax.evaluation.snapshot_metrics import Measures
    from idrid_jax.models import layer_table
    from idrid_jax.training import snapshot

    snapshot.check_best(config, Measures.names)

    if values.dry_run:
        print(layer_table.networks_table(config))
        print(json.dumps(config.to_dict(), indent=2))
        return
    from idrid_jax.cli import explain
    from idrid_jax.training import multihost

    where = multihost.place(values.coordinator_address, values.num_processes, values.process_id)
    with multihost.joined(where, timeout=values.join_timeout, explain=lambda error: explain(error, values)) as peers:
        say = print if peers.index == 0 else lambda *_, **__: None
        for name, value in config_lib.fields(config):
            if name in automatic:
                say(f"auto: config.{name} = {value:g}")
        _train(config, Path(values.workdir), say=say)


def _train(config, workdir, say):
    from idrid_jax.config import steps
    from idrid_jax.data.manifest import find_prepared
    from idrid_jax.evaluation.snapshot_metrics import Measures
    from idrid_jax.models import layer_table
    from idrid_jax.training import loop
    from idrid_jax.training.checkpoint import Checkpoints

    manifest = find_prepared(config.data.data_dir or None, config.data.release)  # first: it may be missing
    tell = lambda text: say(text, file=sys.stderr, flush=True)
    # before the table, which takes seconds: its weights may be missing
    stops = config.on_collapse == "stop"
    measures = Measures(manifest.folder / "features", chooses=config.checkpoint.best, stops=stops, tell=tell)
    say(layer_table.networks_table(config))
    say(
        f"release {manifest.name} ({manifest.fingerprint[:12]}), "
        f"training photographs by grade: {manifest.counts['grading']['train']}",
        flush=True,
    )
    if heard := config.conditioning.start_kimg + config.conditioning.ramp_kimg:
        say(f"grades are heard in full from {heard:g} kimg on: of the snapshots before, none is chosen", flush=True)
    state = loop.train(config, workdir, on_snapshot=(measures,))
    step = int(state.step)
    if step < steps(config.total_kimg, config):
        return  # interrupted, and said so
    with Checkpoints(workdir) as checkpoints:
        chosen = checkpoints.chosen()
    if chosen is not None:
        kimg = chosen * config.batch_size / 1000
        say(f"chosen: step {chosen} ({kimg:g} kimg), whose {config.checkpoint.best} is lowest")
    say(
        f"step {step} ({step * config.batch_size / 1000:g} kimg): images, stats.jsonl and checkpoints in {workdir}\n"
        f"next: {PROGRAM} evaluate --workdir {workdir}"
    )


# -- evaluate


def _define_evaluate(values, argv):
    checkpoint.define(values)
    flags.DEFINE_integer(
        "count", None, "generated images; empty: as many as training photographs", lower_bound=2, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "where the release is prepared; empty: where the run found it", flag_values=values
    )
    flags.DEFINE_integer(
        "pixels",
        None,
        "a side at which images are compared with photographs, to set a run beside one of smaller images; empty: their "
        "own",
        flag_values=values,
    )
    flags.DEFINE_list(
        "weights",
        ["efficientnet-lite0"],
        "networks trained elsewhere whose features measure too: efficientnet-lite0, which is installed, and files "
        "(InceptionV3 for FID, DINOv2, SwAV); --weights= for none",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "usefulness",
        0,
        "graders trained with and without synthetic images, for each of so many seeds; 0: none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "keep_share",
        0.0,
        "with --usefulness: also with this share of the synthetic images, the likeliest to a grader of photographs",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "edema", False, "with --usefulness: graders learn the risk of macular oedema too", flag_values=values
    )
    flags.DEFINE_integer(
        "grader_pixels",
        64,
        "with --usefulness: graders read at most so many a side",
        lower_bound=16,
        flag_values=values,
    )


def _run_evaluate(values):
    for name in ("keep_share", "edema", "grader_pixels"):
        if values[name].present and not values.usefulness:
            raise UserError(f"--{name} is of the graders that --usefulness N trains: give that too, or leave it out")
    if checkpoint.another_process("evaluate"):
        return
    from idrid_jax.cli.stages import Stages
    from idrid_jax.evaluation import evaluate

    with Stages() as stages:

        def tell(result):
            stages.close()
            _print_evaluation(result)

        result = evaluate.evaluate(
            values.workdir,
            count=values.count,
            seed=values.seed,
            step=values.step,
            pixels=values.pixels,
            statistics=values.batch_statistics,
            data_dir=values.data_dir,
            weights_files=[name for name in values.weights if name],
            seeds=values.usefulness,
            keep_share=values.keep_share,
            edema=values.edema,
            side=values.grader_pixels,
            progress=stages,
            told=tell,
        )
    print(f"\nwritten to {Path(values.workdir) / evaluate.file_name(values.pixels)}")
    return 2 if "weights_left_out" in result else None


def _print_evaluation(result):
    from idrid_jax.evaluation import (
        augmentation_leak,
        closeness,
        membership,
        memorization,
        quality,
        reading,
        usefulness,
    )

    of = result["of"]
    print(
        f"{of['network']} at step {of['step']} ({of['kimg']:g} kimg, {of['chosen']}; batch statistics: "
        f"{of['batch_statistics']}) on release {of['release']} ({of['fingerprint'][:12]}), "
        f"{of['size']}x{of['size']}x{of['channels']}, {of['crop']}"
        + (f", compared at {of['pixels']}x{of['pixels']}" if "pixels" in of else "")
        + "\n"
    )
    if "heard" in of:
        print(f"It hears {of['heard']:.1%} of its grades, as they are fading in: what follows of grades is of such.\n")
    print(quality.table(result, thesis=of["network"] == "dcgan28"))
    print("\n" + closeness.table(result["closeness"]))
    if "copies" in result:
        print("\n" + memorization.table(result["copies"]))
        print(membership.line(result["membership"]))
    if "reading" in result:
        print(reading.line(result["reading"]))
    if "leak" in result:
        print("\n" + augmentation_leak.table(result["leak"]))
    if "usefulness" in result:
        print("\n" + usefulness.table(result["usefulness"]))
    for name, why in result.get("weights_left_out", {}).items():
        print(f"Not measured by {name}: {why}.")


TRAIN = Command(
    "train a generator, or go on with it",
    "--config configs/cgan32.py --workdir runs/cgan32 --config.total_kimg=200",
    _define_train,
    _run_train,
)
EVALUATE = Command(
    "closeness, copies and usefulness of a generator's images, beside what real photographs give",
    "--workdir runs/cgan32",
    _define_evaluate,
    _run_evaluate,
)
