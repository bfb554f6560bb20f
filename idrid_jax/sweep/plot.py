"""A picture of a sweep's metrics by the fields that its runs change."""

import dataclasses

import numpy as np
import pandas as pd

from idrid_jax.sweep.definition import FINISHED

SEED = "seed"  # runs that differ only in it are repetitions
PANELS = (  # column, title, column of the value on held-out real photographs, digits
    ("ssim", "SSIM, generated and training images", "ssim_held_out", 3),
    ("psnr", "PSNR (dB), generated and training images", "psnr_held_out", 2),
    ("ssim_nearest", "SSIM, generated images and their nearest training image", None, 3),
    ("ssim_excess", "SSIM between generated minus between training images\n(mode collapse above 0.1)", None, 3),
    ("loss_d", "last Loss_D (real + generated; near 0: D saturates)", None, 3),
    ("images_per_s", "images/s in training", None, 0),
)
COLLAPSE = "ssim_excess", 0.1


@dataclasses.dataclass(frozen=True)
class Axis:
    """Fields that change together.

    Attributes:
      fields: their names.
      caption: their names as text.
      labels: their values in each row, as text.
      order: the labels, sorted by value.
    """

    fields: tuple[str, ...]
    caption: str
    labels: list[str]
    order: list[str]


def find_axes(frame: pd.DataFrame, fields: list[str]) -> list[Axis]:
    """Return the fields with more than one value in `frame`, grouped where one determines the other."""
    groups: dict[tuple, list[str]] = {}
    for name in fields:
        codes, values = pd.factorize(frame[name])
        if len(values) > 1:
            groups.setdefault(tuple(codes), []).append(name)
    found = []
    for names in groups.values():
        columns = frame[names]
        same = all((columns[name] == columns[names[0]]).all() for name in names)
        rows = [tuple(row) for row in columns.itertuples(index=False)]
        order = columns.drop_duplicates().sort_values(names).itertuples(index=False)
        caption = (" = " if same else " / ").join(name.rpartition(".")[2] for name in names)
        found.append(
            Axis(tuple(names), caption, [_label(row, same) for row in rows], [_label(row, same) for row in order])
        )
    return found


def _label(row: tuple, same: bool) -> str:
    """Name a row of values; `same`: they are equal."""
    return str(row[0]) if same else " / ".join(map(str, row))


def sweep_figure(frame: pd.DataFrame, fields: list[str], *, title: str = ""):
    """Return a matplotlib Figure of `results.results_table`: lines for one axis, heat maps for two, else sorted dots.

    In lines and heat maps, runs that differ only in their seed are repetitions: their mean and range are shown.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    all_axes = find_axes(frame, fields)
    over = [axis for axis in all_axes if axis.fields != (SEED,)]
    panel, height = {1: (_line, 4), 2: (_heat_map, 3.2)}.get(len(over), (_dots, 1.5))
    if panel is _heat_map:  # the axis with more values is x
        over.sort(key=lambda axis: len(axis.order))
        height += 0.45 * len(over[0].order)
    if panel is _dots:
        over, height = all_axes, height + (0.2 + 0.1 * len(all_axes)) * len(frame)
    figure = Figure(figsize=(16, 1 + 2 * height), layout="constrained")
    for axes, (column, caption, reference, digits) in zip(figure.subplots(2, 3).flat, PANELS):
        known = held_out_text(frame, reference, digits) if reference else ""
        caption += f"\n(held-out real photographs: {known})" if known else ""
        axes.set_title(caption, fontsize=10, loc="left")
        panel(axes, frame, over, column, digits, float(known) if known and " " not in known else None)
    unfinished = frame[frame.status != FINISHED]
    notes = [f"{len(frame) - len(unfinished)} of {len(frame)} runs finished"]
    notes += [f"{count} {status}" for status, count in unfinished.status.value_counts().items()]
    if len(over) < len(all_axes):
        notes.append(f"mean of {frame[SEED].nunique()} seeds, and their range")
    figure.suptitle(f"{title}\n{', '.join(notes)}", fontsize=12)
    return figure


def held_out_text(frame: pd.DataFrame, column: str, digits: int) -> str:
    """Return the value on held-out photographs as text; a range where runs differ in size or preprocessing."""
    low, high = (f"{value:.{digits}f}" for value in (frame[column].min(), frame[column].max()))
    return "" if low == "nan" else low if low == high else f"{low} to {high}"


def _line(axes, frame, over, column, digits, reference):
    """Plot a dot for every run and a line through the means; the values are evenly spaced."""
    (axis,) = over
    places = np.array([axis.order.index(label) for label in axis.labels])
    means = frame[column].groupby(places).mean().reindex(range(len(axis.order)))
    axes.plot(places, frame[column], "o", color="tab:blue", alpha=0.6)
    axes.plot(means.index, means, color="tab:blue")
    names = [f"{label}{_status_note(frame.status[places == place])}" for place, label in enumerate(axis.order)]
    axes.set_xticks(range(len(axis.order)), names)
    axes.set_xlim(-0.5, len(axis.order) - 0.5)
    axes.set_xlabel(axis.caption)
    _references(axes.axhline, column, reference)
    axes.grid(alpha=0.3)
    axes.margins(y=0.15)
    if column == "images_per_s":
        axes.set_ylim(bottom=0)


def _heat_map(axes, frame, over, column, digits, reference):
    """Plot a cell for each pair of values with its number, or with the status of its runs."""
    y, x = over
    cells = frame.assign(_y=y.labels, _x=x.labels).groupby(["_y", "_x"])
    values = cells[column].mean().unstack("_x").reindex(index=y.order, columns=x.order)
    grid = values.to_numpy(float)
    centered = column == COLLAPSE[0] and np.isfinite(grid).any()
    limit = max(COLLAPSE[1], np.nanmax(np.abs(grid))) if centered else None
    image = axes.imshow(
        grid,
        aspect="auto",
        origin="lower",
        cmap="RdBu_r" if centered else "viridis",
        vmin=-limit if centered else 0 if column == "images_per_s" else None,
        vmax=limit,
    )
    for (label_y, label_x), cell in cells:
        row, place = y.order.index(label_y), x.order.index(label_x)
        mean, known = grid[row, place], cell[column].dropna()
        if np.isfinite(mean):
            text = f"{mean:.{digits}f}"
            if len(known) > 1:
                text += f"\n{known.min():.{digits}f} to {known.max():.{digits}f}"
            red, green, blue, _ = image.cmap(image.norm(mean))
            color = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        else:
            text, color = _status_note(cell.status, ""), "black"
        axes.text(place, row, text, ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(range(len(x.order)), x.order)
    axes.set_yticks(range(len(y.order)), y.order)
    axes.set_xlabel(x.caption)
    axes.set_ylabel(y.caption)


def _dots(axes, frame, over, column, digits, reference):
    """Plot a dot for each run in a row of its own, the highest SSIM at the top."""
    order = frame.ssim.reset_index(drop=True).sort_values(na_position="first").index
    axes.plot(frame[column].to_numpy()[order], range(len(order)), "o", color="tab:blue")
    names = [""] * len(order)
    if axes.get_subplotspec().is_first_col():
        changes = lambda row: "\n".join(f"{axis.caption} {axis.labels[row]}" for axis in over)
        names = [changes(row) + _status_note(frame.status.iloc[[row]], " ") for row in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_ylim(-0.5, len(order) - 0.5)
    _references(axes.axvline, column, reference)
    axes.grid(alpha=0.3)
    axes.margins(x=0.1)


def _status_note(statuses, before="\n"):
    """Return the statuses of runs of which none is finished, for a label."""
    return "" if (statuses == FINISHED).any() else f"{before}({', '.join(sorted(set(statuses)))})"


def _references(line, column, reference):
    if reference is not None:
        line(reference, color="tab:green", linestyle="--")
    if column == COLLAPSE[0]:
        line(COLLAPSE[1], color="tab:red", linestyle="--")
