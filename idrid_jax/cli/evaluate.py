"""`idrid-jax evaluate`: measure a generator's images."""

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_data_dir
from idrid_jax.errors import UserError

IMAGENET = "efficientnet-lite0"  # `features.pretrained.IMAGENET`, whose import takes seconds


def _define(values, argv):
    checkpoint.define(values, several=True)
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
        [IMAGENET],
        f"files of pretrained feature extractors (InceptionV3 for FID, DINOv2, SwAV) next to {IMAGENET}, which is "
        "installed; --weights= for no extractor at all",
        flag_values=values,
    )
    flags.DEFINE_string(
        "grader", None, "grader.npz of idrid-jax grade, which then also reads the grades", flag_values=values
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
        0.5,
        "with --usefulness: also train with this share of the synthetic images, those that a grader of photographs "
        "is most certain of",
        lower_bound=0.01,
        upper_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean("verbose", False, "print every table after the summary", flag_values=values)


def _run(values):
    if values["keep_share"].present and not values.usefulness:
        raise UserError("--keep_share goes with --usefulness N, which trains graders")
    if not checkpoint.is_process_0("evaluate"):
        return None
    results = [_evaluate(workdir, values) for workdir in values.workdir]
    if len(results) > 1 and values.usefulness:
        _combine(values.workdir[0], results)
    return 2 if any("skipped_weights" in result for result in results) else None


def _evaluate(workdir, values) -> dict:
    from idrid_jax.cli.progress import StageProgress
    from idrid_jax.evaluation import evaluate, summary
    from idrid_jax.training.run_dir import RunDir

    with StageProgress() as progress:

        def show(result):
            progress.close()
            print(summary.text(result))
            if values.verbose:
                print("\n" + summary.tables(result))

        result = evaluate.evaluate(
            workdir,
            count=values.count,
            seed=values.seed,
            step=values.step,
            pixels=values.pixels,
            statistics=values.batch_statistics,
            data_dir=values.data_dir,
            weights_files=_weights_files(values.weights),
            grader_file=values.grader,
            usefulness_seeds=values.usefulness,
            keep_share=values.keep_share,
            on_progress=progress,
            on_result=show,
        )
    print(f"\nwritten to {RunDir(workdir).evaluation(values.pixels)}")
    return result


def _combine(workdir, results):
    """Print the usefulness of several runs together and write it to the folder of the first."""
    from idrid_jax.evaluation import evaluate, usefulness
    from idrid_jax.training.run_dir import RunDir

    combined = evaluate.write_combined_usefulness(workdir, results)
    print(f"\n{len(results)} runs together\n\n{usefulness.table(combined)}")
    print(f"\nwritten to {RunDir(workdir).combined_usefulness}")


def _weights_files(names: list[str]) -> list[str]:
    """Return the files of --weights and the installed network before them; none for --weights=."""
    names = [name for name in names if name]
    return [IMAGENET, *(name for name in names if name != IMAGENET)] if names else []


EVALUATE = Command(
    "measure quality, memorization, membership leakage, grading and usefulness of a generator's images",
    "--workdir runs/cgan32",
    _define,
    _run,
)
