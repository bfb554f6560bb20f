"""Plans for people: a page on one, a table of many."""

from idrid_jax.bench.report import table

LABEL = "by the published peaks; nothing was measured"
EFFORTS = {
    "full": "with the effort that train gets",
    "low": "with little effort: work and exchanges are train's; memory and its traffic are more, so what fits fits,\n"
    "and what is bound by memory is told too slow, by a third or so (--effort full is exact, and takes minutes)",
}


def page(planned) -> str:
    """One plan that fits."""
    config, target, facts = planned.config, planned.target, planned.facts
    chips = f"{target.chips} {_unit(target)}{'s' if target.chips > 1 else ''}"
    split = f"the batch split by {planned.shares}" + f", rows by {config.mesh.rows}" * (config.mesh.rows > 1)
    split += ", parameters split over the chips" * config.mesh.fsdp
    lines = [
        f"{config.network} in {config.dtype}, {config.batch_size:,} images an update"
        f"{f' in {config.accumulate} micro-batches' if config.accumulate > 1 else ''} on {target.name} "
        f"({chips}: {split})",
        f"compiled by {target.compiler}"
        + (f", {EFFORTS[target.effort]}" if target.topology else ", whose figures these are"),
        "",
        _memory(facts, target),
    ]
    if planned.largest and planned.largest.batch:
        found = planned.largest
        beyond = f"; {found.refused:,} does not" if found.refused else "; larger ones were not tried"
        lines += [f"largest batch known to fit: {found.batch:,} ({found.batch // planned.shares:,} a share){beyond}"]
    lines += ["", _work(planned)]
    if facts.collectives:
        lines += ["", _exchanges(facts)]
    if planned.roofline:
        lines += ["", _time(planned)]
    return "\n".join(lines)


def _memory(facts, target) -> str:
    of = f" of {_size(target.limit)}" if target.limit else ""
    kinds = {
        "state": "parameters, statistics, optimizers",
        "photographs": "photographs",
        "padding": "padding of both",
        "temporaries": "activations, gradients and other temporaries",
        "results": "results beside the state",
        "code": "code",
    }
    rows = [(kinds[name], _size(count)) for name, count in facts.memory.items() if count]
    return f"memory of a {_unit(target)}: fits, {_size(facts.needed)}{of}\n" + _indent(table(("of which", ""), rows))


def _work(planned) -> str:
    facts, line = planned.facts, planned.roofline
    rows = [
        ["operations", _count(facts.flops, "FLOP")],
        ["memory read and written", _count(facts.main_bytes if planned.roofline else facts.bytes, "B")],
        [f"sent to other {_unit(planned.target)}s", _count(facts.wire_bytes, "B")],
    ]
    header = [f"an update, of each {_unit(planned.target)}", ""]
    if line:
        chip, slice_ = planned.target.topology.chip, planned.target.topology
        header += ["at a peak of", "takes"]
        peaks = _count(chip.flops, "FLOP/s"), _count(chip.memory_rate, "B/s"), _count(slice_.wire_rate, "B/s")
        times = line.compute_s, line.memory_s, line.interconnect_s
        for row, peak, seconds in zip(rows, peaks, times):
            row += [peak if seconds else None, f"{1e3 * seconds:.3f} ms"]
    return table(header, rows)


def _exchanges(facts) -> str:
    rows = [
        [kind, f"{said['count']:.0f}", _count(said["bytes"], "B"), _count(said["wire_bytes"], "B")]
        for kind, said in facts.collectives.items()
    ]
    text = table(("collectives of an update", "count", "of arrays of", "sent by each on a ring"), rows)
    return text + (f"\n{facts.loops} stand in loops of unknown length, counted once" if facts.loops else "")


def _time(planned) -> str:
    line, batch = planned.roofline, planned.config.batch_size
    return (
        f"roofline, {LABEL}: an update takes at least {1e3 * line.least_s:.3f} ms ({line.bound}) if the three overlap "
        f"wholly, {1e3 * line.serial_s:.3f} ms if nothing does:\n"
        f"{batch / line.least_s:,.0f} or {batch / line.serial_s:,.0f} images/s. Real steps are slower: "
        "chips do not reach their peaks, and exchanges have latencies."
    )


def scaling(planned, per_chip: int) -> str:
    """Many plans of one configuration, as many images on each chip."""
    config = planned[0].config
    looked = any(one.largest for one in planned)
    header = ["slice", "chips", "batch", "GiB a chip", "of", "GFLOP", "memory", "sent", "compute ms", "memory ms",
              "wire ms", "images/s by roofline", "a chip"]  # fmt: skip
    header += ["largest batch", "a chip"] if looked else []
    rows = []
    for one in planned:
        facts, line, chips = one.facts, one.roofline, one.target.chips
        row = [one.target.name, chips, one.config.batch_size]
        row += [f"{facts.needed / 2**30:.2f}" if facts.needed else None, f"{one.target.limit / 2**30:.2f}"]
        if one.fits and line:
            row += [f"{facts.flops / 1e9:,.0f}", _count(facts.main_bytes, "B"), _count(facts.wire_bytes, "B")]
            row += [f"{1e3 * s:.3f}" for s in (line.compute_s, line.memory_s, line.interconnect_s)]
            row += [f"{one.images_per_s:,.0f}", f"{one.images_per_s / chips:,.0f}"]
        else:
            row += ["does not fit", *[None] * 7]
        if looked:
            most = one.largest.batch if one.largest else None
            row += [f"{most:,}", f"{most / chips:,.0f}"] if most else [None, None]
        rows.append(row)
    title = (
        f"{config.network} in {config.dtype}, {per_chip} images a chip"
        f"{f' and row of chips (rows = {config.mesh.rows})' if config.mesh.rows > 1 else ''}; "
        f"work and bytes are of one chip in one update; times are rooflines {LABEL}\n"
        f"{planned[0].target.compiler}, {EFFORTS[planned[0].target.effort]}"
    )
    return title + "\n\n" + table(header, rows)


def _unit(target) -> str:
    return "chip" if target.topology else "device"


def _size(count: int | None) -> str:
    if count is None:
        return "not told"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _count(number: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return (
                f"{number / factor:.3g} {prefix}{unit}"
                if number / factor < 999
                else f"{number / factor:.0f} {prefix}{unit}"
            )
    return f"{number:.0f} {unit}"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
