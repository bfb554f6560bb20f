"""`idrid-jax report`: write one HTML page about one run or several."""

import sys

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_data_dir


def _define(values, argv):
    flags.DEFINE_multi_string(
        "workdir", None, "a run directory, or several to compare", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "the file to write; default: report.html in --workdir, if there is one", flag_values=values
    )
    define_data_dir(values, "where each run found it")


def _run(values):
    from idrid_jax.evaluation import report

    out = report.write(values.workdir, values.out, data_dir=values.data_dir, log=_log)
    print(f"written to {out}: one self-contained page for a browser")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


REPORT = Command(
    "write one HTML page about a run: samples, curves, metrics, data card and model card",
    "--workdir runs/cgan32",
    _define,
    _run,
)
