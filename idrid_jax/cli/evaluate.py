"""`idrid-jax evaluate`: measure a generator's images."""

from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_data_dir
from idrid_jax.errors import UserError


def _define(values, argv):
    checkpoint.define(values)
    flags.DEFINE_integer(
        "count",
        None,
        "generated images; default: as many as training photographs",
        lower_bound=2,
        flag_values=values,
    )
    define_data_dir(values, "where the run found it")
    flags.DEFINE_integer(
        "pixels",
        None,
        "side to which images and photographs are downsampled, to compare runs of different sizes; default: no "
        "downsampling",
        flag_values=values,
    )
    flags.DEFINE_list(
        "weights",
        ["efficientnet-lite0"],
        "pretrained feature extractors: efficientnet-lite0, which is installed, or files (InceptionV3 for FID, DINOv2, "
        "SwAV); --weights= for none",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "usefulness",
        0,
        "number of seeds; for each, graders are trained with and without synthetic images; 0: none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "keep_share",
        0.0,
        "with --usefulness: also train with this share of the synthetic images, those that a grader of photographs "
        "is most certain of",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "edema", False, "with --usefulness: graders also learn the risk of macular edema", flag_values=values
    )
    flags.DEFINE_integer(
        "grader_pixels",
        64,
        "with --usefulness: largest side of the images for graders",
        lower_bound=16,
        flag_values=values,
    )
    flags.DEFINE_boolean("verbose", False, "print every table after the summary", flag_values=values)


def _run(values):
    for name in ("keep_share", "edema", "grader_pixels"):
        if values[name].present and not values.usefulness:
            raise UserError(f"--{name} goes with --usefulness N, which trains graders")
    if not checkpoint.is_process_0("evaluate"):
        return
    from idrid_jax.cli.progress import StageProgress
    from idrid_jax.evaluation import evaluate, summary

    with StageProgress() as progress:

        def show(result):
            progress.close()
            print(summary.text(result))
            if values.verbose:
                print("\n" + summary.tables(result))

        result = evaluate.evaluate(
            values.workdir,
            count=values.count,
            seed=values.seed,
            step=values.step,
            pixels=values.pixels,
            statistics=values.batch_statistics,
            data_dir=values.data_dir,
            weights_files=[name for name in values.weights if name],
            usefulness_seeds=values.usefulness,
            keep_share=values.keep_share,
            edema=values.edema,
            grader_pixels=values.grader_pixels,
            on_progress=progress,
            on_result=show,
        )
    print(f"\nwritten to {Path(values.workdir) / evaluate.file_name(values.pixels)}")
    return 2 if "skipped_weights" in result else None


EVALUATE = Command(
    "measure quality, memorization, membership leakage, grading and usefulness of a generator's images",
    "--workdir runs/cgan32",
    _define,
    _run,
)
