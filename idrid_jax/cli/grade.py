"""`idrid-jax grade`: compare graders of retinopathy on pretrained features."""

from pathlib import Path

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_data_dir
from idrid_jax.errors import UserError

MIN_SIZE, MAX_SIZE = 32, 2048


def _define(values, argv):
    flags.DEFINE_string("out", None, "folder for grading.json and grader.npz", required=True, flag_values=values)
    define_data_dir(values, "$TFDS_DATA_DIR, or ~/tensorflow_datasets")
    flags.DEFINE_string(
        "release", "", "fingerprint or path of a prepared release; default: the last one", flag_values=values
    )
    flags.DEFINE_list(
        "weights",
        ["efficientnet-lite0"],
        "pretrained networks: efficientnet-lite0, which is installed, or files (DINOv2, InceptionV3 for FID, SwAV, "
        "torchvision's VGG19)",
        flag_values=values,
    )
    flags.DEFINE_list(
        "sizes",
        ["224", "448"],
        "sides in pixels at which efficientnet-lite0 sees the photographs; other networks have a size of their own",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "fine_tune", False, "also fine-tune efficientnet-lite0, which takes minutes on a CPU", flag_values=values
    )
    flags.DEFINE_integer("folds", 5, "folds of the cross-validation", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("repeats", 3, "repeats of the cross-validation", lower_bound=1, flag_values=values)
    checkpoint.define_seed(values)


def _run(values):
    sizes = _sizes(values.sizes)
    if not checkpoint.is_process_0("grade"):
        return
    from idrid_jax.cli.progress import StageProgress
    from idrid_jax.evaluation.graders import grade, table

    with StageProgress() as progress:

        def show(result):
            progress.close()
            print(table.text(result))

        result = grade.grade(
            values.out,
            data_dir=values.data_dir,
            release=values.release,
            weights_files=[name for name in values.weights if name],
            sizes=sizes,
            num_folds=values.folds,
            repeats=values.repeats,
            fine_tune=values.fine_tune,
            seed=values.seed,
            on_progress=progress,
            on_result=show,
        )
    print(f"\nwritten to {Path(values.out) / grade.NAME}")
    return 2 if "skipped_weights" in result else None


def _sizes(texts: list[str]) -> list[int]:
    for text in texts:
        if not (text.isdecimal() and MIN_SIZE <= int(text) <= MAX_SIZE):
            raise UserError(f"grade: --sizes={','.join(texts)}: {text!r} is not a size from {MIN_SIZE} to {MAX_SIZE}")
    if not texts:
        raise UserError(f"grade: --sizes has no value: write --sizes=224, or sizes from {MIN_SIZE} to {MAX_SIZE}")
    return [int(text) for text in texts]


GRADE = Command(
    "compare graders of retinopathy on pretrained features by cross-validation, and test them",
    "--out runs/grading",
    _define,
    _run,
)
