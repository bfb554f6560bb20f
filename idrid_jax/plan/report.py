"""Plans as text and as a picture: a page for one plan, a table and a figure for a weak-scaling series."""

import io
from pathlib import Path

from idrid_jax.bench.report import format_table
from idrid_jax.data import atomic

EFFORT_NOTES = {
    "full": "at full effort, as train compiles",
    "low": "at low effort: work and collectives are those of train; memory and its traffic are higher, so a batch\n"
    "that fits here fits in training, and memory times are a third too long (--effort full is exact, in minutes)",
}
MEMORY_KINDS = {
    "state": "parameters, statistics, optimizers",
    "photographs": "photographs",
    "padding": "padding of both",
    "temporaries": "activations, gradients, other temporaries",
    "results": "results besides the state",
    "code": "code",
}


def plan_page(plan) -> str:
    """Return the text for one plan that fits (`run.Plan`)."""
    config, target, stats = plan.config, plan.target, plan.stats
    unit = target.unit
    mesh = f", rows split over {config.mesh.rows} {unit}s" * (config.mesh.rows > 1)
    mesh += ", parameters split over all (fsdp)" * config.mesh.fsdp
    effort = f", {EFFORT_NOTES[target.effort]}" if target.topology else ""
    lines = [
        f"{config.network} in {config.dtype} on {target.name}",
        f"batch: {plan.batch_per_chip:,} images per {_shard(config, unit)} ({plan.batch_source}), "
        f"{config.batch_size:,} in all{mesh}",
        f"compiler: {target.compiler}{effort}",
        "",
        _memory(plan),
    ]
    if plan.largest and plan.largest.batch_size:
        largest = plan.largest
        beyond = f"{largest.refused:,} does not fit" if largest.refused else "larger ones were not tried"
        shards = config.batch_size // plan.batch_per_chip
        lines.append(
            f"largest batch known to fit: {largest.batch_size:,} ({largest.batch_size // shards:,} per "
            f"{_shard(config, unit)}); {beyond}"
        )
    lines += ["", _work(plan)]
    if stats.collectives:
        lines += ["", _collectives(stats, unit)]
    if plan.roofline:
        line = plan.roofline
        lines += [
            "",
            f"roofline from published peaks (nothing was measured): {1e3 * line.overlapped_s:.3f} ms per update if "
            f"compute, memory and interconnect\noverlap completely (bound by {line.bound}), "
            f"{1e3 * line.serial_s:.3f} ms if nothing overlaps: {config.batch_size / line.overlapped_s:,.0f} or "
            f"{config.batch_size / line.serial_s:,.0f} images/s.\nReal steps are slower: chips do not reach their "
            "peaks, and collectives have latencies.",
        ]
    return "\n".join(lines)


def scaling_table(plans) -> str:
    """Return a table with one line per plan; all plans have the same configuration and batch per chip."""
    first = plans[0]
    searched = any(plan.largest for plan in plans)
    header = ["slice", "chips", "batch", "GiB/chip", "of", "GFLOP", "memory", "sent", "compute ms", "memory ms",
              "interconnect ms", "images/s", "per chip"]  # fmt: skip
    header += ["largest batch", "per chip"] if searched else []
    rows = []
    for plan in plans:
        stats, line, chips = plan.stats, plan.roofline, plan.target.num_chips
        row = [plan.target.name, chips, plan.config.batch_size]
        row += [f"{stats.memory_bytes / 2**30:.2f}" if stats.memory_bytes else None]
        row += [f"{plan.target.memory_limit / 2**30:.2f}"]
        if plan.fits and line:
            row += [
                f"{stats.flops / 1e9:,.0f}",
                _quantity(stats.bytes_accessed, "B"),
                _quantity(stats.interconnect_bytes, "B"),
            ]
            row += [f"{1e3 * seconds:.3f}" for seconds in (line.compute_s, line.memory_s, line.interconnect_s)]
            row += [f"{plan.images_per_s:,.0f}", f"{plan.images_per_s / chips:,.0f}"]
        else:
            row += ["does not fit", *[None] * 7]
        if searched:
            largest = plan.largest.batch_size if plan.largest else 0
            row += [f"{largest:,}", f"{largest / chips:,.0f}"] if largest else [None, None]
        rows.append(row)
    config, target = first.config, first.target
    title = (
        f"{config.network} in {config.dtype}, {first.batch_per_chip} images per {_shard(config, 'chip')} "
        f"({first.batch_source})\n"
        "work and bytes are per chip and update; times and images/s are rooflines from published peaks (nothing was "
        f"measured)\ncompiler: {target.compiler}, {EFFORT_NOTES[target.effort]}"
    )
    return title + "\n\n" + format_table(header, rows)


def save_scaling_figure(plans, path: Path) -> None:
    """Write a PNG with images/s and memory by number of chips, atomically. Raises UserError if it cannot be written."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    config = plans[0].config
    kinds = list(dict.fromkeys(plan.target.topology.chip.name for plan in plans))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rate, memory = figure.subplots(1, 2)
    for number, kind in enumerate(kinds):
        same_kind = [plan for plan in plans if plan.target.topology.chip.name == kind]
        fitting = [plan for plan in same_kind if plan.images_per_s]
        if fitting:
            chips = [plan.target.num_chips for plan in fitting]
            rate.plot(chips, [plan.images_per_s for plan in fitting], marker="o", label=kind, color=f"C{number}")
            serial = [plan.config.batch_size / plan.roofline.serial_s for plan in fitting]
            rate.plot(chips, serial, ":", color=f"C{number}")
            ideal = fitting[0].images_per_s / chips[0]
            rate.plot(chips, [ideal * n for n in chips], linewidth=0.8, color="grey", zorder=0)
        known = [plan for plan in same_kind if plan.stats.memory_bytes]
        shares = [100 * plan.stats.memory_bytes / plan.target.memory_limit for plan in known]
        memory.plot([plan.target.num_chips for plan in known], shares, marker="o", label=kind, color=f"C{number}")
    figure.suptitle(
        f"{config.network} in {config.dtype}, {plans[0].batch_per_chip} images per chip: from published peaks, "
        "not measured"
    )
    title = "images/s by roofline: full overlap (line), no overlap (dotted), ideal scaling (grey)"
    rate.set_title(title, fontsize=9, loc="left")
    rate.set_yscale("log")
    memory.set_title("memory in use, % of a chip", fontsize=9, loc="left")
    memory.set_ylim(bottom=0)
    ticks = sorted({plan.target.num_chips for plan in plans})
    for axes in (rate, memory):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("chips")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.savefig(picture := io.BytesIO(), dpi=110, format="png")
    atomic.write_bytes(path, picture.getvalue())


def _shard(config, unit: str) -> str:
    """Name what a share of the batch belongs to."""
    return f"group of {config.mesh.rows} {unit}s" if config.mesh.rows > 1 else unit


def _memory(plan) -> str:
    limit = f" of {_size(plan.target.memory_limit)}" if plan.target.memory_limit else ""
    rows = [(MEMORY_KINDS[kind], _size(count)) for kind, count in plan.stats.memory_by_kind.items() if count]
    table = format_table(("of which", ""), rows)
    title = f"memory per {plan.target.unit}: fits, {_size(plan.stats.memory_bytes)}{limit}"
    return "\n".join([title, *(f"  {line}" for line in table.splitlines())])


def _work(plan) -> str:
    stats, line, unit = plan.stats, plan.roofline, plan.target.unit
    rows = [
        ["operations", _quantity(stats.flops, "FLOP")],
        ["bytes accessed", _quantity(stats.bytes_accessed, "B")],
        [f"sent to other {unit}s", _quantity(stats.interconnect_bytes, "B")],
    ]
    header = [f"per {unit} and update", ""]
    if line:
        chip = plan.target.topology.chip
        header += ["at a peak of", "takes"]
        peaks = (
            (chip.flops_per_s, "FLOP/s"),
            (chip.memory_bytes_per_s, "B/s"),
            (
                plan.target.topology.interconnect_bytes_per_s,
                "B/s",
            ),
        )
        times = line.compute_s, line.memory_s, line.interconnect_s
        for row, peak, seconds in zip(rows, peaks, times):
            row += [_quantity(*peak) if seconds else None, f"{1e3 * seconds:.3f} ms"]
    return format_table(header, rows)


def _collectives(stats, unit: str) -> str:
    rows = [
        [
            kind,
            f"{figures['count']:.0f}",
            _quantity(figures["bytes"], "B"),
            _quantity(figures["interconnect_bytes"], "B"),
        ]
        for kind, figures in stats.collectives.items()
    ]
    text = format_table(("collectives per update", "count", "bytes of arrays", f"sent per {unit} (ring)"), rows)
    unknown = stats.collectives_in_unknown_loops
    return text + (f"\n{unknown} of them in loops of unknown length, counted once" if unknown else "")


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _quantity(number: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            digits = ".3g" if number / factor < 999 else ".0f"
            return f"{number / factor:{digits}} {prefix}{unit}"
    return f"{number:.0f} {unit}"
