"""Geometry of the report's plots, which templates/plots.html.j2 draws as inline SVG in the page's font and colors.

Not by matplotlib: its SVG takes 70 ms and 13 kB per plot against 0.4 ms and 2 kB, and a report has some 50 plots; it
also cannot take the page's colors, which follow light, dark and print. Coordinates are in units of 1 / WIDTH of a
plot's width.
"""

import dataclasses
import math
from collections.abc import Sequence

WIDTH = 360
COLORS = 6  # of runs in page.css, in a cycle
ROW_HEIGHT = 22
CURVE_HEIGHT = 190
LABEL_LETTERS = 18  # of a row's label, at most
LETTER_WIDTH = 6.1  # of an average letter
MAX_POINTS = 400  # of a curve; more are averaged
PEAK = 1.5  # a curve that exceeds its 99th percentile by this factor is cut there


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of an interval plot: a value, its 95 % interval, and the single values of `dots`.

    color: index of a run, None for grey. reference: drawn as a ring. off_scale: does not extend the axis.
    missing: shown if value is None; a heading has neither.
    """

    label: str
    value: float | None = None
    interval: Sequence[float] | None = None
    color: int | None = None
    reference: bool = False
    dots: Sequence[float] = ()
    off_scale: bool = False
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """(x, y) points of a run; `dash` distinguishes the curves of one run; `dots` marks the points."""

    points: list[tuple[float, float]]
    color: int
    dash: int = 0
    dots: bool = False


def interval_plot(
    title: str,
    rows: Sequence[Row],
    *,
    decimals: int,
    factor: float = 1,
    line: float | None = None,
    signed: bool = False,
) -> dict:
    """Return the geometry of a plot with one row per value, and its number on the right.

    factor: of all values when shown. line: value of a vertical line. signed: numbers have a sign.
    """
    number_format = f"{'+' if signed else ''}z.{decimals}f"
    numbers = [_number_text(row, factor, number_format) for row in rows]
    left = 10 + LETTER_WIDTH * min(LABEL_LETTERS, max(len(row.label) for row in rows))
    right = max(WIDTH - 8 - LETTER_WIDTH * max(map(len, numbers)), left + 50)
    low, high = _value_range(rows, factor, line)
    bottom = 8 + ROW_HEIGHT * len(rows)

    def x(value):
        return left + (value * factor - low) / (high - low) * (right - left)

    drawn = []
    for i, (row, text) in enumerate(zip(rows, numbers)):
        mark = None if row.value is None else _mark(row, x, left, right)
        drawn.append({"y": 6 + ROW_HEIGHT * (i + 0.5), "label": _shorten(row.label), "number": text, "mark": mark})
    return {
        "title": title,
        "width": WIDTH,
        "height": bottom + 20,
        "bottom": bottom,
        "ticks": [(x(t / factor), _tick_text(t)) for t in ticks(low, high, 3)],
        "line": None if line is None else x(line),
        "rows": drawn,
    }


def _mark(row, x, left, right):
    """The mark of a row: its class, and the x of its parts, clipped to [left, right]."""
    at = x(row.value)
    ends = [min(max(x(bound), left), right) for bound in row.interval or ()]
    arrow = None if left <= at <= right else (right, -7) if at > right else (left, 7)  # x of the tip, and of the base
    return {
        "class": f"mark{' reference' * row.reference}{'' if row.color is None else f' {color_class(row.color)}'}",
        "dots": [x(value) for value in row.dots if left <= x(value) <= right],
        "interval": ends if ends and ends[0] < ends[1] else None,
        "arrow": arrow,
        "shape": None if arrow else "bar" if row.dots else "point",
        "x": at,
    }


def _number_text(row, factor, number_format):
    if row.value is None:
        return row.missing
    value, *bounds = (format(v * factor, number_format) for v in (row.value, *(row.interval or ())))
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def _value_range(rows, factor, line):
    values = [] if line is None else [line]
    for row in rows:
        if row.value is not None and not row.off_scale:
            values += [row.value, *(row.interval or ()), *row.dots]
    values = values or [row.value for row in rows if row.value is not None] or [0.0]
    return _padded(min(values) * factor, max(values) * factor)


def curve_plot(
    title: str, curves: Sequence[Curve], *, marks: Sequence[tuple[float, int, str]] = (), line: float | None = None
) -> dict:
    """Return the geometry of curves over kimg. marks: (kimg, color, text) of vertical lines. line: a horizontal one."""
    curves = [dataclasses.replace(curve, points=_thin(curve.points)) for curve in curves if curve.points]
    left, right, top, bottom = 40, WIDTH - 8, 14, 162
    xs = [x for curve in curves for x, _ in curve.points] + [x for x, *_ in marks]
    ys = [y for curve in curves for y in _without_peaks([y for _, y in curve.points])]
    ys += [] if line is None else [line]
    x_low, x_high = min(0, *xs), max(xs) or 1.0
    y_low, y_high = _padded(min(ys), max(ys))

    def x_of(x):
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def y_of(y):
        return bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - top)

    drawn = []
    for curve in curves:
        points = [(x_of(x), y_of(y)) for x, y in curve.points]
        css_class = f"mark {color_class(curve.color)}"
        drawn.append({"points": points, "dots": curve.dots, "dash": curve.dash, "class": css_class})
    return {
        "title": title,
        "width": WIDTH,
        "height": CURVE_HEIGHT,
        "left": left, "right": right, "top": top, "bottom": bottom,
        "x_ticks": [(x_of(t), _tick_text(t)) for t in ticks(x_low, x_high, 5)],
        "y_ticks": [(y_of(t), _tick_text(t)) for t in ticks(y_low, y_high, 4)],
        "line": None if line is None else y_of(line),
        "marks": [
            {"x": x_of(x), "text": text, "class": f"mark {color_class(color)}", "end": x_of(x) > (left + right) / 2}
            for x, color, text in marks
        ],
        "curves": drawn,
    }  # fmt: skip


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers in [low, high]."""
    rough = (high - low) / count
    scale = 10 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _padded(low, high):
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _thin(points):
    """Average neighboring points so that at most MAX_POINTS remain."""
    width = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [tuple(sum(values) / len(group) for values in zip(*group)) for group in groups]


def _without_peaks(values):
    limit = sorted(values)[int(0.99 * (len(values) - 1))]
    return [y for y in values if len(values) < 20 or y <= limit + PEAK * abs(limit)]


def color_class(index: int) -> str:
    """Return the CSS class of a run's color."""
    return f"c{index % COLORS}"


def _tick_text(value):
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.3g}"


def _shorten(text):
    return text if len(text) <= LABEL_LETTERS else text[: LABEL_LETTERS - 1] + "…"
