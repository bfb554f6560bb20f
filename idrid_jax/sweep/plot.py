"""A sweep's measures as one picture, by what its runs change."""

import dataclasses

import numpy as np
import pandas as pd

from idrid_jax.sweep.results import FINISHED

SEED = "seed"  # runs that differ in it alone are repetitions
PANELS = (  # column, title, what held-out real photographs give, digits
    ("ssim", "SSIM, generated x training images", "ssim_held_out", 3),
    ("psnr", "PSNR (dB), generated x training images", "psnr_held_out", 2),
    ("ssim_nearest", "SSIM, each generated x its nearest training image", None, 3),
    ("ssim_excess", "SSIM among generated less among training\n(collapse above 0.1)", None, 3),
    ("loss_d", "last Loss_D (sum of both halves; near 0: D has won)", None, 3),
    ("images_per_s", "images/s while training", None, 0),
)
COLLAPSE = "ssim_excess", 0.1


@dataclasses.dataclass(frozen=True)
class Axis:
    """Fields that change together. caption: their names; labels: their value in each row, as text; order: the labels,
    sorted by value."""

    fields: tuple[str, ...]
    caption: str
    labels: list[str]
    order: list[str]


def axes(frame: pd.DataFrame, fields: list[str]) -> list[Axis]:
    """The fields that have more than one value in `frame`, those together that are functions of each other."""
    groups: dict[tuple, list[str]] = {}
    for name in fields:
        codes, values = pd.factorize(frame[name])
        if len(values) > 1:
            groups.setdefault(tuple(codes), []).append(name)
    made = []
    for names in groups.values():
        columns = frame[names]
        same = all((columns[name] == columns[names[0]]).all() for name in names)
        label = lambda row: str(row[0]) if same else " / ".join(map(str, row))
        rows = [tuple(row) for row in columns.itertuples(index=False)]
        order = [label(row) for row in columns.drop_duplicates().sort_values(names).itertuples(index=False)]
        leaves = [name.rpartition(".")[2] for name in names]
        made.append(Axis(tuple(names), " = ".join(leaves) if same else " / ".join(leaves), [*map(label, rows)], order))
    return made


def draw(frame: pd.DataFrame, fields: list[str], *, title: str = ""):
    """A matplotlib Figure of `results.table`: by one axis a line for each measure, by two a heat map, else dots sorted
    by SSIM. In lines and heat maps runs that differ in their seed alone are repetitions: their mean, and how far they
    lie apart."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    all_axes = axes(frame, fields)
    over = [axis for axis in all_axes if axis.fields != (SEED,)]
    panel, height = {1: (_line, 4), 2: (_heat_map, 3.2)}.get(len(over), (_dots, 1.5))
    if panel is _heat_map:  # the axis with more values lies along x
        over.sort(key=lambda axis: len(axis.order))
        height += 0.45 * len(over[0].order)
    if panel is _dots:
        over, height = all_axes, height + (0.2 + 0.1 * len(all_axes)) * len(frame)
    figure = Figure(figsize=(16, 1 + 2 * height), layout="constrained")
    for drawn, (column, caption, reference, digits) in zip(figure.subplots(2, 3).flat, PANELS):
        known = held_out(frame, reference, digits) if reference else ""
        caption += f"\n(held-out real photographs: {known})" if known else ""
        drawn.set_title(caption, fontsize=10, loc="left")
        panel(drawn, frame, over, column, digits, float(known) if known and " " not in known else None)
    open_runs = frame[frame.status != FINISHED]
    notes = [f"{len(frame) - len(open_runs)} of {len(frame)} runs finished"]
    notes += [f"{count} {status}" for status, count in open_runs.status.value_counts().items()]
    if len(over) < len(all_axes):
        notes.append(f"mean of {frame[SEED].nunique()} seeds, and their range")
    figure.suptitle(f"{title}\n{', '.join(notes)}", fontsize=12)
    return figure


def held_out(frame: pd.DataFrame, column: str, digits: int) -> str:
    """What held-out photographs give, as text: one number, or a range where runs differ in size or preprocessing."""
    low, high = (f"{value:.{digits}f}" for value in (frame[column].min(), frame[column].max()))
    return "" if low == "nan" else low if low == high else f"{low} to {high}"


def _line(drawn, frame, over, column, digits, reference):
    """Dots of every run, and a line through their means, in the order of the values, evenly spaced."""
    (axis,) = over
    places = np.array([axis.order.index(label) for label in axis.labels])
    means = frame[column].groupby(places).mean().reindex(range(len(axis.order)))
    drawn.plot(places, frame[column], "o", color="tab:blue", alpha=0.6)
    drawn.plot(means.index, means, color="tab:blue")
    names = [f"{label}{_open(frame.status[places == place])}" for place, label in enumerate(axis.order)]
    drawn.set_xticks(range(len(axis.order)), names)
    drawn.set_xlim(-0.5, len(axis.order) - 0.5)
    drawn.set_xlabel(axis.caption)
    _references(drawn.axhline, column, reference)
    drawn.grid(alpha=0.3)
    drawn.margins(y=0.15)
    if column == "images_per_s":
        drawn.set_ylim(bottom=0)


def _heat_map(drawn, frame, over, column, digits, reference):
    """A cell for each pair of values, with the number in it; why there is none, where there is none."""
    y, x = over
    cells = frame.assign(_y=y.labels, _x=x.labels).groupby(["_y", "_x"])
    values = cells[column].mean().unstack("_x").reindex(index=y.order, columns=x.order)
    grid = values.to_numpy(float)
    centred = column == COLLAPSE[0] and np.isfinite(grid).any()
    limit = max(COLLAPSE[1], np.nanmax(np.abs(grid))) if centred else None
    image = drawn.imshow(
        grid,
        aspect="auto",
        origin="lower",
        cmap="RdBu_r" if centred else "viridis",
        vmin=-limit if centred else 0 if column == "images_per_s" else None,
        vmax=limit,
    )
    for (label_y, label_x), cell in cells:
        row, place = y.order.index(label_y), x.order.index(label_x)
        mean, known = grid[row, place], cell[column].dropna()
        if np.isfinite(mean):
            written = f"{mean:.{digits}f}"
            if len(known) > 1:
                written += f"\n{known.min():.{digits}f} to {known.max():.{digits}f}"
            red, green, blue, _ = image.cmap(image.norm(mean))
            colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        else:
            written, colour = _open(cell.status, ""), "black"
        drawn.text(place, row, written, ha="center", va="center", color=colour, fontsize=10)
    drawn.set_xticks(range(len(x.order)), x.order)
    drawn.set_yticks(range(len(y.order)), y.order)
    drawn.set_xlabel(x.caption)
    drawn.set_ylabel(y.caption)


def _dots(drawn, frame, over, column, digits, reference):
    """A dot for each run, on a line of its own, the highest SSIM on top."""
    order = frame.ssim.reset_index(drop=True).sort_values(na_position="first").index
    drawn.plot(frame[column].to_numpy()[order], range(len(order)), "o", color="tab:blue")
    names = [""] * len(order)
    if drawn.get_subplotspec().is_first_col():
        changes = lambda row: "\n".join(f"{axis.caption} {axis.labels[row]}" for axis in over)
        names = [changes(row) + _open(frame.status.iloc[[row]], " ") for row in order]
    drawn.set_yticks(range(len(order)), names, fontsize=8)
    drawn.set_ylim(-0.5, len(order) - 0.5)
    _references(drawn.axvline, column, reference)
    drawn.grid(alpha=0.3)
    drawn.margins(x=0.1)


def _open(statuses, before="\n"):
    """What has become of runs of which none is finished, for a label."""
    return "" if (statuses == FINISHED).any() else f"{before}({', '.join(sorted(set(statuses)))})"


def _references(line, column, reference):
    if reference is not None:
        line(reference, color="tab:green", linestyle="--")
    if column == COLLAPSE[0]:
        line(COLLAPSE[1], color="tab:red", linestyle="--")
