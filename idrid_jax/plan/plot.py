"""A weak-scaling table as a picture."""

import os
from pathlib import Path

from idrid_jax.data.atomic import writing


def draw(planned, per_chip: int, path: Path) -> None:
    """Writes a PNG: images/s by chips beside the ideal line, and what a chip's memory is taken by; whole or not at all.

    Raises UserError where it cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    config = planned[0].config
    kinds = list(dict.fromkeys(one.target.topology.chip.name for one in planned))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rate, memory = figure.subplots(1, 2)
    for number, kind in enumerate(kinds):
        mine = [one for one in planned if one.target.topology.chip.name == kind]
        fitting = [one for one in mine if one.images_per_s]
        if fitting:
            chips = [one.target.chips for one in fitting]
            rate.plot(chips, [one.images_per_s for one in fitting], marker="o", label=kind, color=f"C{number}")
            serial = [one.config.batch_size / one.roofline.serial_s for one in fitting]
            rate.plot(chips, serial, ":", color=f"C{number}")
            ideal = fitting[0].images_per_s / chips[0]
            rate.plot(chips, [ideal * n for n in chips], linewidth=0.8, color="grey", zorder=0)
        known = [one for one in mine if one.facts.needed]
        shares = [100 * one.facts.needed / one.target.limit for one in known]
        memory.plot([one.target.chips for one in known], shares, marker="o", label=kind, color=f"C{number}")
    figure.suptitle(f"{config.network} in {config.dtype}, {per_chip} images a chip: from published peaks, not measured")
    rate.set_title(
        "images/s by roofline: all overlaps (line), nothing does (dotted), ideal (grey)", fontsize=9, loc="left"
    )
    rate.set_yscale("log")
    memory.set_title("a chip's memory taken, %", fontsize=9, loc="left")
    memory.set_ylim(bottom=0)
    ticks = sorted({one.target.chips for one in planned})
    for axes in (rate, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("chips")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        figure.savefig(partial, dpi=110, format="png")
        os.replace(partial, path)
