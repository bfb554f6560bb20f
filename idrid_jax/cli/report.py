"""The command that shows what a run is worth: report."""

import sys

from absl import flags

from idrid_jax.cli.command import Command


def _define(values, argv):
    flags.DEFINE_multi_string(
        "workdir", None, "a run's folder; several times: runs side by side", required=True, flag_values=values
    )
    flags.DEFINE_string("out", None, "the file; empty: report.html in the only --workdir", flag_values=values)
    flags.DEFINE_string(
        "data_dir", "", "where the release is prepared; empty: where each run found it", flag_values=values
    )


def _run(values):
    from idrid_jax.evaluation import report

    tell = lambda text: print(text, file=sys.stderr, flush=True)
    out = report.write(values.workdir, values.out, data_dir=values.data_dir, tell=tell)
    print(f"written to {out}: open it in a browser; it needs no other file and no network")


REPORT = Command(
    "what a run's images are worth, as one page to look at: samples, curves, measures, data and model cards",
    "--workdir runs/cgan32",
    _define,
    _run,
)
