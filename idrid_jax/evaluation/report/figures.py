"""Figures as inline SVG that take the page's own font and colours, so that they follow light, dark and print.

Each is some WIDTH units wide, so that its text stays readable on a phone; the page lays them side by side.
"""

import dataclasses
import math
from collections.abc import Sequence

from idrid_jax.evaluation.report.markup import COLOURS, Markup, tag

WIDTH = 360
LABEL = 18  # letters of a row's label, at most
LETTER = 6.1  # units of an average letter at the size of the figures' text
POINTS = 400  # of a curve, at most: more are averaged
PEAK = 1.5  # a curve that exceeds its own 99th percentile by so much is cut there


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of `intervals`. colour: of a run, None for grey. reference: drawn as a ring. dots: single values.

    outside: it does not stretch the scale. Without a value, `missing` is written; a heading has neither."""

    label: str
    value: float | None
    interval: Sequence[float] | None = None
    colour: int | None = None
    reference: bool = False
    dots: Sequence[float] = ()
    outside: bool = False
    missing: str = "-"


@dataclasses.dataclass(frozen=True)
class Curve:
    """(x, y) points of a run. caption: of the kind of curve, which has a dash of its own."""

    points: list[tuple[float, float]]
    colour: int
    dash: int = 0
    dots: bool = False


def intervals(
    title: str,
    rows: Sequence[Row],
    *,
    decimals: int,
    factor: float = 1,
    line: float | None = None,
    signed: bool = False,
) -> Markup:
    """A dot and its interval for each row, with the numbers beside it; `line`: a vertical one at that value."""
    shown = [_written(row, decimals, factor, signed) for row in rows]
    left = 10 + LETTER * min(LABEL, max(len(row.label) for row in rows))
    right = max(WIDTH - 8 - LETTER * max(map(len, shown)), left + 50)
    low, high = _range(rows, factor, line)
    at = lambda value: left + (value * factor - low) / (high - low) * (right - left)
    height, row_height = 6 + 22 * len(rows) + 22, 22
    bottom = height - 20
    parts = [
        (
            tag("line", x1=_n(at(t / factor)), x2=_n(at(t / factor)), y1=4, y2=_n(bottom), class_="grid"),
            tag("text", _short(t), x=_n(at(t / factor)), y=_n(bottom + 14), text_anchor="middle", class_="tick"),
        )
        for t in ticks(low, high, 3)
    ]
    if line is not None:
        parts.append(tag("line", x1=_n(at(line)), x2=_n(at(line)), y1=4, y2=_n(bottom), class_="line"))
    for i, (row, text) in enumerate(zip(rows, shown)):
        y = 6 + row_height * (i + 0.5)
        parts.append(tag("text", _cut(row.label, LABEL), x=0, y=_n(y + 4), class_="label"))
        parts.append(tag("text", text, x=WIDTH, y=_n(y + 4), text_anchor="end", class_="number"))
        if row.value is not None:
            parts.append(_row(row, y, at, left, right))
    return _svg(title, height, parts)


def _row(row, y, at, left, right):
    inside = lambda value: left <= at(value) <= right
    clip = lambda value: min(max(at(value), left), right)
    parts = [tag("circle", cx=_n(at(v)), cy=_n(y), r=2.5, class_="seed") for v in row.dots if inside(v)]
    ends = [clip(bound) for bound in row.interval or ()]
    if ends and ends[0] < ends[1]:
        parts.append(tag("line", x1=_n(ends[0]), x2=_n(ends[1]), y1=_n(y), y2=_n(y)))
    if not inside(row.value):  # an arrow at the edge; the number says where it points
        x, d = (right, -7) if at(row.value) > right else (left, 7)
        parts.append(tag("path", d=f"M{_n(x)} {_n(y)}l{d} -4v8z", class_="beyond"))
    elif row.dots:
        parts.append(tag("line", x1=_n(at(row.value)), x2=_n(at(row.value)), y1=_n(y - 7), y2=_n(y + 7)))
    else:
        parts.append(tag("circle", cx=_n(at(row.value)), cy=_n(y), r=4))
    colour = "" if row.colour is None else f" c{row.colour % COLOURS}"
    return tag("g", parts, class_=("mark reference" if row.reference else "mark") + colour)


def _written(row, decimals, factor, signed):
    if row.value is None:
        return row.missing
    number = lambda value: fixed(value * factor, decimals, signed)
    if not row.interval:
        return number(row.value)
    return f"{number(row.value)} [{number(row.interval[0])}, {number(row.interval[1])}]"


def _range(rows, factor, line):
    values = [] if line is None else [line]
    for row in rows:
        if row.value is not None and not row.outside:
            values += [row.value, *(row.interval or ()), *row.dots]
    if not values:
        values = [row.value for row in rows if row.value is not None] or [0.0]
    low, high = min(values) * factor, max(values) * factor
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def curves(
    title: str, lines: Sequence[Curve], *, marks: Sequence[tuple[float, int, str]] = (), line: float | None = None
) -> Markup:
    """Curves over kimg. marks: (kimg, colour, text) for vertical lines; line: a horizontal one."""
    lines = [dataclasses.replace(one, points=_thinned(one.points)) for one in lines if one.points]
    height, left, right, top, bottom = 190, 40, WIDTH - 8, 14, 162
    xs = [x for one in lines for x, _ in one.points] + [x for x, *_ in marks]
    ys = [y for one in lines for y in _without_peaks([y for _, y in one.points])] + ([line] if line is not None else [])
    x_low, x_high = min(0, *xs), max(xs) or 1.0
    pad = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.1 or 1.0
    y_low, y_high = min(ys) - pad, max(ys) + pad
    x_at = lambda x: left + (x - x_low) / (x_high - x_low) * (right - left)
    y_at = lambda y: bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - top)
    parts = []
    for t in ticks(y_low, y_high, 4):
        parts.append(tag("line", x1=left, x2=right, y1=_n(y_at(t)), y2=_n(y_at(t)), class_="grid"))
        parts.append(tag("text", _short(t), x=left - 5, y=_n(y_at(t) + 4), text_anchor="end", class_="tick"))
    for t in ticks(x_low, x_high, 5):
        parts.append(tag("text", _short(t), x=_n(x_at(t)), y=bottom + 15, text_anchor="middle", class_="tick"))
    parts.append(tag("text", "kimg", x=right, y=height - 1, text_anchor="end", class_="tick"))
    if line is not None:
        parts.append(tag("line", x1=left, x2=right, y1=_n(y_at(line)), y2=_n(y_at(line)), class_="line"))
    for x, colour, text in marks:
        end = x_at(x) > (left + right) / 2
        parts.append(
            tag(
                "g",
                tag("line", x1=_n(x_at(x)), x2=_n(x_at(x)), y1=top, y2=bottom, class_="taken"),
                tag("text", text, x=_n(x_at(x) + (-4 if end else 4)), y=10, text_anchor="end" if end else "start"),
                class_=f"mark c{colour % COLOURS}",
            )
        )
    for one in lines:
        path = "L".join(f"{_n(x_at(x))} {_n(y_at(y))}" for x, y in one.points)
        dots = [tag("circle", cx=_n(x_at(x)), cy=_n(y_at(y)), r=3) for x, y in one.points] if one.dots else []
        parts.append(
            tag("g", tag("path", d=f"M{path}", class_=f"dash{one.dash}"), dots, class_=f"mark c{one.colour % COLOURS}")
        )
    return _svg(title, height, parts)


def fixed(value: float, decimals: int, signed: bool = False) -> str:
    """The number with so many decimals, and no minus before zero."""
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text if any(digit in text for digit in "123456789") else text.replace("-", "+" if signed else "")


def key(dash: int) -> Markup:
    """The dash of a kind of curve, for a legend."""
    return tag(
        "svg",
        tag("path", d="M0 5L26 5", class_=f"dash{dash}"),
        viewBox="0 0 26 10",
        class_="key mark",
        aria_hidden="true",
    )


def _thinned(points):
    width = -(-len(points) // POINTS)
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [tuple(sum(values) / len(part) for values in zip(*part)) for part in parts]


def _without_peaks(values):
    most = sorted(values)[int(0.99 * (len(values) - 1))]
    return [y for y in values if len(values) < 20 or y <= most + PEAK * abs(most)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within [low, high], some `count` of them."""
    rough = (high - low) / count
    scale = 10 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(title, height, parts):
    return tag("svg", tag("title", title), parts, viewBox=f"0 0 {WIDTH} {_n(height)}", role="img", class_="figure")


def _short(value):
    text = f"{value:.6g}"
    return text if abs(value) < 1e5 else f"{value:.3g}"


def _n(value):
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _cut(text, most):
    return text if len(text) <= most else text[: most - 1] + "…"
