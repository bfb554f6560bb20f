"""The commands of a reader study: blind sheet, blind score."""

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command, Group


def _define_sheet(values, argv):
    checkpoint.define(values)
    flags.DEFINE_string("out", None, "new folder for the sheet and its key", required=True, flag_values=values)
    flags.DEFINE_integer(
        "each", 10, "photographs of a grade, and as many generated images", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "where the release is prepared; empty: where the run found it", flag_values=values
    )


def _run_sheet(values):
    if checkpoint.another_process("blind sheet"):
        return
    from idrid_jax.evaluation import blind, evaluate
    from idrid_jax.generation import sampling

    sampler = sampling.load(values.workdir, values.step, statistics=values.batch_statistics)
    _, training = evaluate.training_photographs(values.workdir, sampler, values.data_dir)
    out = blind.write(
        sampler, training.images, training.grades, training.ids, values.out, each=values.each, seed=values.seed
    )
    print(
        f"{out / blind.SHEET}: half are photographs. Let somebody write {blind.REAL} or {blind.GENERATED} into "
        f"{blind.ANSWERS}, who has not seen {blind.KEY}\nnext: idrid-jax blind score --answers {out / blind.ANSWERS}"
    )


def _define_score(values, argv):
    flags.DEFINE_string("answers", None, "answers.csv, filled in, with key.csv beside it", required=True,
                        flag_values=values)  # fmt: skip


def _run_score(values):
    from idrid_jax.evaluation import blind

    table = blind.score(values.answers)
    print(table.to_string(formatters={"right": "{:.0%}".format, "called_real": "{:.0%}".format, "p": "{:.2g}".format}))


BLIND = Group(
    "a sheet of photographs and generated images to tell apart, and what the answers are worth",
    {
        "sheet": Command(
            "photographs and generated images of each grade, shuffled, with answers to fill in and a key",
            "--workdir runs/retina64 --out blind",
            _define_sheet,
            _run_sheet,
        ),
        "score": Command(
            "how many answers are right, by grade, beside a coin",
            "--answers blind/answers.csv",
            _define_score,
            _run_score,
        ),
    },
)
