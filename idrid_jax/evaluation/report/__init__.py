"""`idrid-jax report`: run directories -> one HTML file that loads nothing else.

Read in this order: `gather` reads the files of a run, `verdicts` answers the six questions at the top of the page,
`sections`, `closeness` and `cards` compute the tables and plots (`plots`) below them, and `render` fills `templates/`
(Jinja2).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.errors import UserError
from idrid_jax.evaluation.report import gather, render
from idrid_jax.training.run_dir import RunDir


def write(
    workdirs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    data_dir: str = "",
    log: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the report on the runs in `workdirs` to the file `out`, completely or not at all, and return its path.

    out: None for report.html in the only workdir. data_dir: where the release is prepared; empty: where each run found
    it. log: receives a line for each run. The page names what a run lacks.
    Raises: UserError if a workdir holds no run or a damaged config.json or evaluation.json, `out` is missing for
      several workdirs, or `out` is a folder or cannot be written.
    """
    workdirs = [Path(workdir) for workdir in workdirs]
    if out is None and len(workdirs) > 1:
        raise UserError("several --workdir: name the file to write with --out")
    out = RunDir(workdirs[0]).report if out is None else Path(out)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file in it, such as {RunDir(out).report}")
    runs = []
    for index, (workdir, name) in enumerate(zip(workdirs, gather.short_names(workdirs))):
        log(f"reading {workdir}")
        runs.append(gather.gather(workdir, name, index, data_dir))
    atomic.write_text(out.absolute(), render.page(runs))
    return out
