"""`idrid-jax blind sheet` and `blind score`: a reader study, in which people tell photographs from generated images."""

from absl import flags

from idrid_jax.cli import checkpoint
from idrid_jax.cli.command import Command, Group
from idrid_jax.cli.parsing import command_line, define_data_dir


def _define_sheet(values, argv):
    checkpoint.define(values)
    flags.DEFINE_string("out", None, "new folder for the sheet and its key", required=True, flag_values=values)
    flags.DEFINE_integer(
        "each", 10, "photographs of each grade, and as many generated images", lower_bound=1, flag_values=values
    )
    define_data_dir(values, "where the run found it")


def _run_sheet(values):
    if not checkpoint.is_process_0("blind sheet"):
        return
    from idrid_jax.evaluation import blind, evaluated_run
    from idrid_jax.generation import sampling

    sampler = sampling.load_sampler(values.workdir, values.step, batch_statistics=values.batch_statistics)
    _, training = evaluated_run.training_photographs(values.workdir, sampler, values.data_dir)
    out = blind.write(
        sampler, training.images, training.grades, training.ids, values.out, each=values.each, seed=values.seed
    )
    print(
        f"{out / blind.SHEET}: half of the images are photographs. A reader who has not seen {blind.KEY} writes "
        f"{blind.REAL} or {blind.GENERATED} into {blind.ANSWERS} for each."
    )
    print(f"next: {command_line('blind', 'score', '--answers', out / blind.ANSWERS)}")


def _define_score(values, argv):
    flags.DEFINE_string(
        "answers", None, "the completed answers.csv, in one folder with key.csv", required=True, flag_values=values
    )


def _run_score(values):
    from idrid_jax.evaluation import blind

    table = blind.score(values.answers)
    print(table.to_string(formatters={"right": "{:.0%}".format, "called_real": "{:.0%}".format, "p": "{:.2g}".format}))


BLIND = Group(
    "a reader study: can people tell photographs from generated images?",
    {
        "sheet": Command(
            "write a shuffled sheet of photographs and generated images, a form for answers and a key",
            "--workdir runs/retina64 --out blind",
            _define_sheet,
            _run_sheet,
        ),
        "score": Command(
            "report how many answers are right, by grade, next to chance",
            "--answers blind/answers.csv",
            _define_score,
            _run_score,
        ),
    },
)
