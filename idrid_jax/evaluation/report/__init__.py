"""`idrid-jax report`: runs' folders -> one HTML file that needs nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.errors import UserError
from idrid_jax.evaluation.report import gather, page

NAME = "report.html"


def write(
    workdirs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    data_dir: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes the report on the runs in `workdirs` to `out` (None: `workdir/report.html` of the only one), whole or not
    at all.

    data_dir: where the release is prepared; empty: where each run found it. tell: is told which run is being read.
    What a run lacks is said on the page. Returns where it lies.
    Raises UserError where no run is in a workdir, or its config.json or evaluation.json is damaged; several workdirs
    and no `out`; `out` that is a folder, is not named like a page, or cannot be written.
    """
    workdirs = [Path(workdir) for workdir in workdirs]
    if out is None and len(workdirs) > 1:
        raise UserError("several --workdir: name the report's file with --out")
    out = workdirs[0] / NAME if out is None else Path(out)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file in it, such as {out / NAME}")
    runs = []
    for workdir, name in zip(workdirs, gather.names(workdirs)):
        tell(f"reading {workdir}")
        runs.append(gather.gather(workdir, name, data_dir))
    atomic.write_text(out.absolute(), page.html(runs))
    return out
