"""Reading evaluation.json: its numbers, or why there are none. What an older or a newer version wrote must not fail."""

import math

from idrid_jax.evaluation.report.figures import fixed
from idrid_jax.evaluation.report.gather import Run, command
from idrid_jax.evaluation.report.markup import Markup, absent, tag

LACKING = "–"  # in place of a number


def finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(entry, key: str = "value") -> float | None:
    """A finite number of an entry, None where there is none."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return float(value) if finite(value) else None


def bounds(entry) -> tuple[float, float] | None:
    """Its interval, None where there is none."""
    found = entry.get("interval") if isinstance(entry, dict) else None
    whole = isinstance(found, list) and len(found) == 2 and all(map(finite, found))
    return (float(found[0]), float(found[1])) if whole else None


def missing(entry, otherwise: str = "not measured") -> str:
    """Why an entry has no value."""
    return str(entry.get("missing", otherwise)) if isinstance(entry, dict) else otherwise


def written(entry, decimals: int, factor: float = 1, key: str = "value") -> str:
    """Its value as text, LACKING where there is none."""
    value = number(entry, key)
    return LACKING if value is None else fixed(value * factor, decimals)


def closeness_of(run: Run) -> dict:
    """ "closeness" of evaluation.json; {} where it is not there, or as an older version wrote it."""
    found = run.part("closeness")
    return found if isinstance(found.get("rows"), dict) and isinstance(found.get("networks"), list) else {}


def entry_of(rows: dict, row: str, measure: str, network: str = "") -> dict:
    """An entry of closeness, {} where there is none. network: for the measures that take features."""
    found = rows.get(row) or {}
    if network:
        found = (found.get("features") or {}).get(network) or {}
    return found.get(measure) or {}


def unmeasured(run: Run, what: str, several: bool, more: str = "") -> Markup:
    """The line in place of a part that evaluation.json lacks."""
    return absent(f"{run.name}: " if several else None, what, " Run ", tag("code", command(run, more)), ".")


def unjudged(run: Run, why: str, several: bool) -> Markup:
    """The line in place of a part that could not be measured."""
    return absent(f"{run.name}: " if several else None, f"Not measured: {why}.")
