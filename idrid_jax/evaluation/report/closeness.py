"""The section on closeness: every measure beside its reference rows, pooled and by grade."""

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import quality
from idrid_jax.evaluation.closeness import MEASURES
from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.entries import (
    LACKING,
    bounds,
    closeness_of,
    entry_of,
    missing,
    number,
    unjudged,
    unmeasured,
    written,
)
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.markup import hint, swatch, table, tag

ROWS = {  # of closeness, in short
    "held_out_real": "held-out real",
    "halves": "two halves, real",
    "mean_image": "mean image",
    "noise": "noise",
}
FEW = "generated_few"  # the row to read against held-out real where the number of images counts
OUTSIDE = ("mean_image", "noise")  # they shall not stretch a plot's scale
BY_FEATURES, BY_PIXELS = MEASURES["features"], MEASURES["pixels"]
HEADINGS = BY_FEATURES | BY_PIXELS
MEANS = {  # what a measure is, for those who do not know it
    "kid": "Kernel inception distance of two sets of features: 0 where they are alike, by chance a little below.",
    "frechet": "Distance of two sets of features, each taken as a normal distribution; grows as images get fewer.",
    "frechet_ratio": "The same over what two halves of real photographs have, with equal numbers of images.",
    "precision": "Share of images that lie where real ones lie.",
    "recall": "Share of real photographs that lie where generated ones lie: variety.",
    "density": "How deep images lie among real ones, averaged.",
    "coverage": "Share of real photographs that have a generated one nearby: variety.",
    "ms_ssim": "How alike the images of a set are among themselves; above real means too alike.",
    "sliced_wasserstein": "Distance of colours and textures over several scales.",
    "spectrum": "Difference in detail from coarse to fine (power spectrum).",
}
Found = list[tuple[int, Run, dict]]  # (colour, run, its closeness)


def section(runs: list[Run]) -> list:
    several = len(runs) > 1
    parts = [
        tag(
            "p",
            "Each measure compares a set of images with the training photographs. A number means something only "
            "beside what photographs of other patients get by it (held-out real; read it against equally many "
            "generated images), and what a blurred mean image and noise get. Lines are 95 % intervals over images; an "
            "arrow points at a value off the scale.",
        )
    ]
    found = [(i, run, closeness_of(run)) for i, run in enumerate(runs)]
    for _, run, there in found:
        if not there:
            older = "was measured by an older version." if run.part("closeness") else "was not measured."
            parts.append(unmeasured(run, f"Closeness {older}", several))
        why = run.part("skipped_weights")
        parts += [unjudged(run, f"by {name}: {reason}", several) for name, reason in why.items()]
    found = [one for one in found if one[2]]
    if not found:
        return [*parts, _protocol(runs)]
    networks = list(dict.fromkeys(network for *_, there in found for network in there["networks"]))
    for network in networks:
        parts.append(tag("h3", "Features: ", tag("code", network)))
        if "untrained" in network:
            parts.append(hint("An untrained network: it sees colours, edges and textures, not lesions."))
        if "ImageNet" in network:
            parts.append(hint("Trained on everyday photographs: it sees the finest texture, and knows no lesion."))
        parts.append(_panels(found, BY_FEATURES, network, several))
    parts.append(tag("h3", "Without a network, from pixels"))
    parts.append(_panels(found, BY_PIXELS, "", several))
    counts = [there["images"] for *_, there in found if isinstance(there.get("images"), dict)]
    sizes = [", ".join(f"{count} {name.replace('_', '-')}" for name, count in one.items()) for one in counts]
    parts.append(hint(f"Images: {'; '.join(dict.fromkeys(sizes))}.") if sizes else None)
    return [*parts, _by_grade(found, networks, several), _protocol(runs)]


def _panels(found: Found, measures, network, several):
    """A panel for each measure: runs, then the references of the data they share."""
    groups: dict[tuple, Found] = {}
    for one in found:
        if not network or network in one[2]["networks"]:
            groups.setdefault(one[1].data, []).append(one)
    panels = []
    for name in measures:
        rows = []
        for group in groups.values():
            for colour, run, there in group:
                labels = {"generated": run.name if several else "generated", FEW: "equally many"}
                for key, label in labels.items():
                    if key in there["rows"]:
                        rows.append(_row(there["rows"], key, name, network, label, colour))
            shade = group[0][0] if len(groups) > 1 and len(group) == 1 else None
            for key, label in ROWS.items():
                rows.append(_row(group[0][2]["rows"], key, name, network, label, shade))
        panels.append(_panel(name, network, rows, MEANS.get(name, "")))
    return tag("div", panels, class_="panels")


def _row(rows, key, name, network, label, colour):
    entry = entry_of(rows, key, name, network)
    ring = {"reference": key not in ("generated", FEW), "outside": key in OUTSIDE, "missing": LACKING}
    return figures.Row(label, number(entry), bounds(entry), colour, **ring)


def _panel(name, network, rows, means):
    heading, good, decimals = HEADINGS[name]
    return tag(
        "figure",
        tag("figcaption", tag("b", heading), f" good: {good}. ", tag("span", means, class_="hint")),
        figures.intervals(f"{heading}, {network or 'pixels'}", rows, decimals=decimals, factor=_factor(name)),
    )


def _factor(measure):
    return 1000 if measure == "kid" else 1


def _by_grade(found: Found, networks, several):
    graded = [(i, run, there["by_grade"]) for i, run, there in found if isinstance(there.get("by_grade"), dict)]
    if not graded:
        return None
    panels = []
    by_network = lambda network: [one for one in graded if any(_features(of, network) for of in one[2].values())]
    for network in networks:
        rows, with_it = [], by_network(network)
        if not with_it:  # of a run without grades
            continue
        for grade in GRADES:
            rows += [figures.Row(grade, None, missing="")] if several else []
            for i, run, by_grade in with_it:
                label = run.name if several else grade
                rows.append(_row(by_grade.get(grade) or {}, "generated", "kid", network, label, i))
            rows.append(
                _row(with_it[0][2].get(grade) or {}, "held_out_real", "kid", network, ROWS["held_out_real"], None)
            )
        panels.append(_panel("kid", network, rows, f"By grade, with {network}."))
    return [
        tag("h3", "By grade"),
        hint("Within a grade, against the training photographs of that grade; few images make wide intervals."),
        tag("div", panels, class_="panels"),
        tag("div", (_table(graded, grade, networks, several) for grade in GRADES), class_="tables"),
    ]


def _features(rows, network):
    return entry_of(rows or {}, "generated", "kid", network)


def _table(graded, grade, networks, several):
    of_grade = [(i, run, by_grade.get(grade) or {}) for i, run, by_grade in graded]
    head = ["", *([swatch(i), run.name] if several else "generated" for i, run, _ in of_grade), ROWS["held_out_real"]]
    rows, reasons = [], set()
    there = [name for name in networks if any(_features(one, name) for *_, one in of_grade)]
    for network in [*there, ""]:
        rows.append([tag("i", network or "pixels")])
        for name in BY_FEATURES if network else BY_PIXELS:
            entries = [entry_of(one, "generated", name, network) for *_, one in of_grade]
            entries.append(entry_of(of_grade[0][2], "held_out_real", name, network))
            reasons |= {missing(entry) for entry in entries if entry and number(entry) is None}
            rows.append([HEADINGS[name][0], *(_cell(entry, HEADINGS[name][2], _factor(name)) for entry in entries)])
    return tag("div", table(head, rows, caption=grade), (hint(f"{LACKING} {why}") for why in sorted(reasons)))


def _cell(entry, decimals, factor):
    limits = bounds(entry)
    if limits is None or number(entry) is None:
        return written(entry, decimals, factor)
    low, high = (figures.fixed(limit * factor, decimals) for limit in limits)
    return [written(entry, decimals, factor), " ", tag("small", f"{low} to {high}")]


def _protocol(runs):
    """SSIM and PSNR as the thesis takes them."""
    there = [(i, run) for i, run in enumerate(runs) if run.part("quality.generated")]
    if not there:
        return None
    head = ["", *([swatch(i), run.name] if len(runs) > 1 else "SSIM / PSNR dB" for i, run in there)]
    cell = lambda entry: f"{written(entry, 3, key='ssim')} / {written(entry, 2, key='psnr')}"
    rows = [[caption, *(cell(run.part(f"quality.{key}")) for _, run in there)] for key, caption in quality.CAPTIONS.items()]
    return [
        tag("h3", "SSIM and PSNR, for comparison with papers"),
        hint(
            "Means over pairs of different images. They say little of a generator: two unrelated photographs score as "
            "high, and a blurred mean image higher."
        ),
        table(head, rows),
    ]
