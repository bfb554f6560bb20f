"""Commands on a run's folder: train, sample, interpolate, evaluate."""

import json
import sys
from pathlib import Path

from absl import flags

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
    from idrid_jax.training import build

    if values.dry_run:
        print(build.table(config))
        print(json.dumps(config.to_dict(), indent=2))
        return
    from idrid_jax.cli import explain
    from idrid_jax.training import processes

    where = processes.place(values.coordinator_address, values.num_processes, values.process_id)
    with processes.joined(where, timeout=values.join_timeout, explain=lambda error: explain(error, values)) as peers:
        _train(config, Path(values.workdir), say=print if peers.index == 0 else lambda *_, **__: None)


def _train(config, workdir, say):
    from idrid_jax.data import cache
    from idrid_jax.evaluation.snapshots import Measures
    from idrid_jax.training import build, loop
    from idrid_jax.training.checkpoint import Checkpoints

    manifest = cache.prepared(config.data.data_dir or None, config.data.release)  # first: it may be missing
    say(build.table(config))
    say(
        f"release {manifest.name} ({manifest.fingerprint[:12]}), "
        f"training photographs by grade: {manifest.counts['grading']['train']}",
        flush=True,
    )
    tell = lambda text: say(text, file=sys.stderr, flush=True)
    measures = Measures(manifest.folder / "features", chooses=config.checkpoint.best, tell=tell)
    state = loop.train(config, workdir, on_snapshot=(measures,))
    step = int(state.step)
    if step < loop.steps(config.total_kimg, config):
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


# -- sample


def _define_sample(values, argv):
    _define_checkpoint(values)
    flags.DEFINE_string("out", None, "new folder for the images", required=True, flag_values=values)
    flags.DEFINE_integer("per_grade", None, "as many of each grade", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "grade", None, "one grade, 0 to 4, with --count", lower_bound=0, upper_bound=4, flag_values=values
    )
    flags.DEFINE_integer(
        "count",
        None,
        "how many; with --grade, or alone for an unconditional generator",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "balance", False, "as many of each grade as it takes to level the real training set", flag_values=values
    )
    flags.DEFINE_enum("format", "jpg", ["jpg", "png"], "of the images; IDRiD's tools expect jpg", flag_values=values)
    flags.DEFINE_integer("quality", 95, "of JPEG", lower_bound=1, upper_bound=100, flag_values=values)


def _run_sample(values):
    asked = [
        name
        for name in ("per_grade", "grade", "balance")
        if values[name].value is not None and values[name].value is not False
    ]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} exclude each other: take one")
    graded, counted = values.grade is not None, values.count is not None
    if (graded and not counted) or (counted and asked and not graded):
        raise UserError("--count goes with --grade, or alone for an unconditional generator: --grade G --count N")
    if _another_process("sample"):
        return
    from idrid_jax import sampling

    sampler = sampling.load(values.workdir, values.step, statistics=values.batch_statistics)
    options = dict(seed=values.seed, suffix=values.format, quality=values.quality)
    if not sampler.network.conditional:
        if asked or values.count is None:
            raise UserError(
                f"{sampler.config.network} is unconditional, it has no grades: take --count N alone"
                + (f", not --{asked[0]}" if asked else "")
            )
        out = sampling.write_images(sampler, values.out, values.count, **options)
        print(f"{values.count} images in {out}, all at once in {out / sampling.SHEET}")
        return
    counts = _grade_counts(values, sampler)
    out = sampling.write_release(sampler, values.out, counts, **options)
    print(
        f"{sum(counts)} images by grade {counts} as a release in {out}, all at once in {out / sampling.SHEET}\n"
        f"next: {PROGRAM} prepare --release {out}"
    )


def _grade_counts(values, sampler) -> list[int]:
    """Images of each grade that the flags ask of a conditional generator."""
    from idrid_jax.data.release import GRADES
    from idrid_jax.sampling import balancing

    if values.balance:
        return balancing(sampler.run.counts)
    if values.per_grade is not None:
        return [values.per_grade] * len(GRADES)
    if values.grade is not None:
        return [values.count if grade == values.grade else 0 for grade in range(len(GRADES))]
    raise UserError("say how many: --per_grade N, or --grade G --count N, or --balance")


# -- interpolate


def _define_interpolate(values, argv):
    _define_checkpoint(values)
    flags.DEFINE_string(
        "out", None, "a .png (a strip) or .gif (it goes on and back)", required=True, flag_values=values
    )
    flags.DEFINE_integer(
        "rows",
        None,
        "ways, each between latents of its own; empty: 5 for a conditional generator, 4 for others",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "frames", None, "images of one way; empty: 9 in a strip, 24 in a GIF", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer(
        "grade",
        None,
        "0 to 4, of every row; empty: a row of each grade in turn",
        lower_bound=0,
        upper_bound=4,
        flag_values=values,
    )
    flags.DEFINE_string(
        "grades",
        None,
        "0,4 or 0,1,2,3,4: the grade goes this way instead, the latent stays",
        flag_values=values,
    )


def _run_interpolate(values):
    from idrid_jax import interpolation, sampling

    interpolation.check(values.out)
    if values.grade is not None and values.grades is not None:
        raise UserError("--grade and --grades exclude each other: take one")
    way = None if values.grades is None else _way(values.grades)
    if _another_process("interpolate"):
        return
    sampler = sampling.load(values.workdir, values.step, statistics=values.batch_statistics)
    conditional = sampler.network.conditional
    for name in ("grade", "grades"):
        if not conditional and values[name].value is not None:
            raise UserError(f"{sampler.config.network} is unconditional, it has no grades: leave --{name} out")
    frames = values.frames or interpolation.FRAMES[Path(values.out).suffix.lower()]
    rows = values.rows or (5 if conditional else 4)
    if way is not None:
        images = interpolation.between_grades(sampler, way, rows, frames, seed=values.seed)
        said = f"grade {' to '.join(map(str, way))} of {rows} latents"
    else:
        grades = [row % 5 if values.grade is None else values.grade for row in range(rows)]
        images = interpolation.between_latents(sampler, grades, frames, seed=values.seed)
        said = f"{rows} ways between two latents" + (
            f", of grades {', '.join(map(str, grades))}" if conditional else ""
        )
    interpolation.write(images, values.out)
    print(f"{said}, {frames} images each, in {values.out}")


def _way(text) -> list[int]:
    """ "0,4" -> [0, 4]"""
    words = [word.strip() for word in text.split(",")]
    if len(words) < 2 or any(word not in ("0", "1", "2", "3", "4") for word in words):
        raise UserError(f"--grades={text}: give two grades or more, each 0 to 4, such as 0,4")
    return [int(word) for word in words]


# -- evaluate


def _define_evaluate(values, argv):
    _define_checkpoint(values)
    flags.DEFINE_integer(
        "count", None, "generated images; empty: as many as training photographs", lower_bound=2, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "where the release is prepared; empty: where the run found it", flag_values=values
    )
    flags.DEFINE_list(
        "weights",
        [],
        "files of networks trained elsewhere (InceptionV3 for FID, DINOv2, SwAV), whose features then measure too",
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
    if _another_process("evaluate"):
        return
    from idrid_jax.cli.stages import Stages
    from idrid_jax.evaluation import closeness, copies, membership, protocol, reading, run, usefulness

    result = run.evaluate(
        values.workdir,
        count=values.count,
        seed=values.seed,
        step=values.step,
        statistics=values.batch_statistics,
        data_dir=values.data_dir,
        weights_files=values.weights,
        seeds=values.usefulness,
        keep_share=values.keep_share,
        edema=values.edema,
        side=values.grader_pixels,
        progress=Stages(),
    )
    of = result["of"]
    print(
        f"{of['network']} at step {of['step']} ({of['kimg']:g} kimg, {of['chosen']}) on release {of['release']} "
        f"({of['fingerprint'][:12]}), {of['size']}x{of['size']}x{of['channels']}, {of['crop']}\n"
    )
    print(protocol.table(result, thesis=of["network"] == "dcgan28"))
    print("\n" + closeness.table(result["closeness"]))
    print("\n" + copies.table(result["copies"]))
    print(membership.line(result["membership"]))
    if "reading" in result:
        print(reading.line(result["reading"]))
    if "usefulness" in result:
        print("\n" + usefulness.table(result["usefulness"]))
    print(f"\nwritten to {Path(values.workdir) / run.NAME}")


def _another_process(command) -> bool:
    """Whether a launcher started this one beside process 0, which samples and evaluates alone: it is minutes of work
    for one device, and each image then counts once without padding or masks."""
    from idrid_jax.training import processes

    where = processes.place()
    if where is None or where.process_id == 0:
        return False
    print(f"{command}: process 0 does it alone; process {where.process_id} has nothing to do", flush=True)
    return True


def _define_checkpoint(values):
    flags.DEFINE_string("workdir", None, "of idrid-jax train", required=True, flag_values=values)
    flags.DEFINE_integer(
        "step", None, "of a checkpoint; empty: the one that training chose, else the newest", flag_values=values
    )
    flags.DEFINE_enum(
        "batch_statistics",
        "auto",
        ["auto", "running", "standing"],
        "of BatchNorm: as training collected them, or of the weights that draw; auto: standing for a moving average",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "the images are a function of the checkpoint and this",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=values,
    )


TRAIN = Command(
    "train a generator, or go on with it",
    "--config configs/cgan32.py --workdir runs/cgan32 --config.total_kimg=200",
    _define_train,
    _run_train,
)
SAMPLE = Command(
    "draw images by grade, as a release in IDRiD's layout",
    "--workdir runs/cgan32 --out synthetic --balance",
    _define_sample,
    _run_sample,
)
INTERPOLATE = Command(
    "ways between latents or grades, as a strip or an animation",
    "--workdir runs/cgan32 --out way.gif --grades 0,4",
    _define_interpolate,
    _run_interpolate,
)
EVALUATE = Command(
    "closeness, copies and usefulness of a generator's images, beside what real photographs give",
    "--workdir runs/cgan32",
    _define_evaluate,
    _run_evaluate,
)
