"""Numbers of evaluation.json, or the reason why one is missing."""

import math

MISSING = "–"  # shown in place of a number


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(entry, key: str = "value") -> float | None:
    """Return `entry[key]` if it is a finite number, else None."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return float(value) if is_number(value) else None


def interval(entry, key: str = "interval") -> tuple[float, float] | None:
    """Return `entry[key]` as (low, high), None if there is none."""
    bounds = entry.get(key) if isinstance(entry, dict) else None
    valid = isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))
    return (float(bounds[0]), float(bounds[1])) if valid else None


def missing_reason(entry, default: str = "not measured") -> str:
    """Return why an entry has no value."""
    return str(entry.get("missing", default)) if isinstance(entry, dict) else default


def text(entry, decimals: int, factor: float = 1, key: str = "value") -> str:
    """Return a number of an entry as text, MISSING if there is none; never "-0.00"."""
    value = number(entry, key)
    return MISSING if value is None else f"{value * factor:z.{decimals}f}"


def percent(entry, key: str) -> str:
    """Return a share of an entry as a whole percentage."""
    value = number(entry, key)
    return MISSING if value is None else f"{value:.0%}"


def metric(rows: dict, row: str, name: str, network: str = "") -> dict:
    """Return the entry of a metric of "closeness", {} if absent; `network` for the metrics of features."""
    entries = rows.get(row) or {}
    if network:
        entries = (entries.get("features") or {}).get(network) or {}
    return entries.get(name) or {}
