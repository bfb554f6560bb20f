"""Sections on what was measured: closeness, copies, usefulness."""

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation import closeness, protocol
from idrid_jax.evaluation.report import figures
from idrid_jax.evaluation.report.gather import Run, command
from idrid_jax.evaluation.report.markup import Markup, image, swatch, table, tag
from idrid_jax.evaluation.report.verdicts import bounds, closeness_of, entry_of, missing, number
from idrid_jax.evaluation.usefulness import ARMS

ROWS = {  # of closeness, in short; those that shall not stretch a plot's scale are OUTSIDE
    "held_out_real": "held-out real",
    "halves": "half and half, real",
    "mean_image": "mean image",
    "noise": "noise",
}
OUTSIDE = ("mean_image", "noise")
BY_PIXELS = ("ms_ssim", "sliced_wasserstein", "spectrum")
MEANS = {  # what a measure is, for those who do not know it
    "kid": "Distance between two sets of features, 0 where they are alike; may fall a little below (kernel inception "
    "distance).",
    "frechet": "Distance between two sets of features taken as normal distributions; grows as images get fewer.",
    "frechet_ratio": "The same, divided by what two halves of real photographs have, with equal numbers of images.",
    "precision": "Share of images that lie where real ones lie.",
    "recall": "Share of real photographs that lie where generated ones lie: variety.",
    "density": "How deep images lie among real ones, averaged.",
    "coverage": "Share of real photographs that have a generated one nearby: variety.",
    "ms_ssim": "How alike the images of a set are among themselves; above real means too alike.",
    "sliced_wasserstein": "Distance of colours and textures over several scales.",
    "spectrum": "Difference in detail from coarse to fine (power spectrum).",
}
DASHED = "–"


def unmeasured(run: Run, what: str, several: bool, more: str = "") -> Markup:
    """The line in place of a part that evaluation.json lacks."""
    name = f"{run.name}: " if several else ""
    return tag("p", f"{name}{what} Run ", tag("code", command(run, more)), ".", class_="absent")


def text_of(entry: dict, factor: float, decimals: int) -> str:
    """Its value, or a dash."""
    value = number(entry)
    return DASHED if value is None else f"{value * factor:.{decimals}f}"


def _cell(entry, factor, decimals):
    limits = bounds(entry)
    if limits is None or number(entry) is None:
        return text_of(entry, factor, decimals)
    low, high = (f"{limit * factor:.{decimals}f}" for limit in limits)
    return [text_of(entry, factor, decimals), " ", tag("small", f"{low} to {high}")]


def _factor(measure):
    return 1000 if measure == "kid" else 1


# -- closeness


def closeness_section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "Each measure compares a set of images with the training photographs. A number means something only beside "
            "what photographs of other patients get by it (held-out real), and what a blurred mean image and noise get. "
            "Lines are 95 % intervals over images; an arrow points at a value off the scale.",
        )
    ]
    found = [(i, run, closeness_of(run)) for i, run in enumerate(runs)]
    for _, run, rows in found:
        if not rows:
            older = "was measured by an older version." if run.part("closeness") else "was not measured."
            parts.append(unmeasured(run, f"Closeness {older}", len(runs) > 1))
    found = [(i, run, c) for i, run, c in found if c]
    networks = list(dict.fromkeys(network for *_, c in found for network in c["networks"]))
    by_features = [name for name in closeness.MEASURES if name not in BY_PIXELS]
    for network in networks:
        parts.append(tag("h3", "Features: ", tag("code", network)))
        if "untrained" in network:
            parts.append(tag("p", "An untrained network: it sees colours, edges and textures, not lesions.", class_="hint"))
        parts.append(_panels(found, by_features, network, len(runs) > 1))
    if found:
        parts.append(tag("h3", "Without a network, from pixels"))
        parts.append(_panels(found, BY_PIXELS, "", len(runs) > 1))
        counts = {f"{c['images'].get('generated')} generated, {c['images'].get('training')} training and "
                  f"{c['images'].get('held_out')} held-out real images" for *_, c in found if isinstance(c.get("images"), dict)}  # fmt: skip
        parts.append(tag("p", f"Measured on {'; '.join(sorted(counts))}.", class_="hint") if counts else None)
        parts.append(_by_grade(found, networks, by_features))
    parts.append(_protocol(runs))
    return parts


def _panels(found, measures, network, several):
    panels = []
    for name in measures:
        heading, good, decimals = closeness.MEASURES[name]
        rows, data = [], []
        for colour, run, c in found:
            entry = entry_of(c["rows"], "generated", name, network)
            rows.append(_line(run.name if several else "generated", entry, colour))
        for _, run, c in found:  # of runs on the same data they are the same
            if run.data in data or (network and network not in c["networks"]):
                continue
            data.append(run.data)
            of = f" ({run.name})" if len({r.data for _, r, _ in found}) > 1 else ""
            for key, label in ROWS.items():
                rows.append(_line(label + of, entry_of(c["rows"], key, name, network), None, key in OUTSIDE))
        panels.append(
            tag(
                "figure",
                tag("figcaption", tag("b", heading), f" good: {good}. ", tag("span", MEANS.get(name, ""), class_="hint")),
                figures.intervals(f"{heading}, {network or 'pixels'}", rows, decimals=decimals, factor=_factor(name)),
            )
        )
    return tag("div", panels, class_="panels")


def _line(label, entry, colour, outside=False):
    return figures.Row(label, number(entry), bounds(entry), colour, outside=outside, missing=DASHED)


def _by_grade(found, networks, by_features):
    graded = [(i, run, c) for i, run, c in found if isinstance(c.get("by_grade"), dict)]
    if not graded:
        return None
    several, tables = len(found) > 1, []
    for grade in GRADES:
        of_grade = [(i, run, c["by_grade"].get(grade) or {}) for i, run, c in graded]
        head = ["", *([swatch(i), run.name] if several else "generated" for i, run, _ in of_grade), "held-out real"]
        rows, reasons = [], set()
        for network in [*networks, ""]:
            title = network or "pixels"
            rows.append([tag("i", title), *([""] * (len(of_grade) + 1))])
            for name in by_features if network else BY_PIXELS:
                heading, _, decimals = closeness.MEASURES[name]
                entries = [entry_of(r, "generated", name, network) for *_, r in of_grade]
                entries.append(entry_of(of_grade[0][2], "held_out_real", name, network))
                reasons |= {missing(e) for e in entries if e and number(e) is None}
                rows.append([heading, *(_cell(e, _factor(name), decimals) for e in entries)])
        made = table(head, rows, caption=grade)
        tables.append(tag("div", made, [tag("p", f"{DASHED} {why}", class_="hint") for why in sorted(reasons)]))
    return [
        tag("h3", "By grade"),
        tag("p", "Within a grade, against the training photographs of that grade; few images make wide intervals.", class_="hint"),
        tag("div", tables, class_="tables"),
    ]


def _protocol(runs):
    """PSNR and SSIM as the thesis takes them."""
    there = [(i, run) for i, run in enumerate(runs) if run.part("generated")]
    if not there:
        return None
    head = ["", *([swatch(i), run.name] if len(runs) > 1 else "SSIM / PSNR dB" for i, run in there)]
    cell = lambda entry: (
        DASHED if number(entry, "ssim") is None else f"{entry['ssim']:.3f} / {number(entry, 'psnr') or 0:.2f}"
    )
    rows = [[caption, *(cell(run.part(key)) for _, run in there)] for key, caption in protocol.CAPTIONS.items()]
    return [
        tag("h3", "SSIM and PSNR, for comparison with papers"),
        tag(
            "p",
            "Means over pairs of different images. They say little of a generator: two unrelated photographs score as "
            "high, and a blurred mean image higher.",
            class_="hint",
        ),
        table(head, rows),
    ]


# -- copies


def copies_section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "Each generated image beside the training photograph that it is most like, the likest pairs first. "
            "Likeness is the correlation of structure (disc, vessels, lesions), whatever the brightness, also mirrored: "
            "1 is the same picture. Photographs of other patients say how like two eyes are by chance.",
        )
    ]
    several, rows = len(runs) > 1, []
    for colour, run in enumerate(runs):
        found = run.part("copies")
        if not isinstance(found.get("generated"), dict):
            if not found:
                parts.append(unmeasured(run, "Copies were not looked for.", several))
            else:
                parts.append(tag("p", f"{run.name + ': ' if several else ''}not judged: {missing(found)}.", class_="absent"))
            continue
        for key, label in (("generated", run.name if several else "generated"), ("held_out", "held-out real")):
            of = found.get(key) or {}
            likeness = of.get("nearest") or {}
            label = [swatch(colour), label] if several and key == "generated" else label
            cells = [text_of({"value": likeness.get(q)}, 1, 2) for q in ("0.5", "0.9", "0.99", "1")]
            authentic = number(of, "authentic")
            rows.append([label, *cells, DASHED if authentic is None else f"{authentic:.0%}"])
    if rows:
        head = ["likeness to the nearest", "median", "90 %", "99 %", "most", "authentic"]
        parts.append(table(head, rows))
        parts.append(
            tag(
                "p",
                "Columns: half, 90 % and 99 % of the images are at most so like their nearest training photograph. "
                "Authentic: farther from it than that photograph is from its own nearest one.",
                class_="hint",
            )
        )
    for colour, run in enumerate(runs):
        parts.append(_pairs(run, colour, several))
    return parts


def _pairs(run, colour, several):
    if not run.pairs:
        lost = bool(run.part("copies").get("pairs"))
        return tag("p", f"{run.name}: copies.png does not go with this evaluation; run ", tag("code", command(run)), ".", class_="absent") if lost else None  # fmt: skip
    most = number(run.part("copies").get("held_out", {}).get("nearest") or {}, "1")
    shown = []
    for drawn, real, entry in run.pairs:
        likeness = number(entry, "similarity")
        shown.append(
            tag(
                "figure",
                image(drawn, "generated image"),
                image(real, f"training photograph {entry.get('training')}"),
                tag("figcaption", tag("b", DASHED if likeness is None else f"{likeness:.2f}"), f" {entry.get('training')}"),
                class_="pair",
            )
        )
    beside = "" if most is None else f" The likest held-out photograph has {most:.2f}."
    return [
        tag("h3", swatch(colour), run.name) if several else None,
        tag("p", "Above generated, below its nearest training photograph, with their likeness." + beside, class_="hint"),
        tag("div", shown, class_="pairs"),
    ]


# -- usefulness


def usefulness_section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "A network that grades retinopathy is trained with and without synthetic images, several times, and read on "
            "held-out real photographs. Quadratic kappa: 1 is agreement with the graders, 0 is chance. A thin dot is one "
            "training, the bar their mean, the line a 95 % interval.",
        )
    ]
    several = len(runs) > 1
    found = []
    for i, run in enumerate(runs):
        part = run.part("usefulness")
        if isinstance(part.get("arms"), dict):
            found.append((i, run, part))
        elif part or (run.evaluation and not run.network.conditional):
            why = missing(part, f"{run.config.network} draws no grades that a grader could learn from")
            parts.append(tag("p", f"{run.name + ': ' if several else ''}not measured: {why}.", class_="absent"))
        else:
            parts.append(unmeasured(run, "Usefulness was not measured.", several, " --usefulness 5"))
    if not found:
        return parts
    panels = []
    for title, where, key, line, signed in (
        ("Quadratic kappa", "arms", "kappa", None, False),
        ("Balanced accuracy (chance: 0.20)", "arms", "balanced_accuracy", None, False),
        ("Kappa less that of real photographs, same seeds", "differences", "kappa", 0, True),
    ):
        rows = [
            _seeds(part[where][arm], key, f"{run.name}: {SHORT[arm]}" if several else SHORT[arm], i)
            for arm in ARMS
            for i, run, part in found
            if arm in (part.get(where) or {})
        ]
        if rows:
            drawn = figures.intervals(title, rows, decimals=3 if signed else 2, line=line, signed=signed)
            panels.append(tag("figure", tag("figcaption", tag("b", title)), drawn))
    parts.append(tag("div", panels, class_="panels"))
    arms = "; ".join(f"{SHORT[arm]}: {caption}" for arm, caption in ARMS.items())
    parts.append(tag("p", f"Trained on {arms}.", class_="hint"))
    for colour, run, part in found:
        parts.append(tag("h3", [swatch(colour), run.name, ": "] if several else None, "Confusion matrices"))
        budget = part.get("budget") or {}
        parts.append(
            tag(
                "p",
                f"Rows: the true grade; columns: the grade read; counts over {part.get('seeds')} trainings of "
                f"{budget.get('steps')} updates with {budget.get('batch_size')} images. Recall: share of a true grade "
                "that is read so.",
                class_="hint",
            )
        )
        parts.append(tag("div", [_confusion(arm, part["arms"][arm]) for arm in ARMS if arm in part["arms"]], class_="tables"))
    return parts


SHORT = {"real": "real", "oversampled": "oversampled", "balanced": "real + synthetic", "synthetic": "synthetic"}


def _seeds(arm, key, label, colour):
    entry = arm.get(key) or {}
    dots = [float(v) for v in entry.get("by_seed") or []]
    return figures.Row(label, number(entry, "mean"), bounds(entry), colour, dots=dots)


def _confusion(name, arm):
    matrix, recall = arm.get("confusion") or [], list((arm.get("recall") or {}).values())
    rows = []
    for grade, line in enumerate(matrix):
        total = max(1, sum(line))
        cells = [tag("span", count, class_="shade", style=f"--s:{100 * count / total:.0f}%") for count in line]
        share = recall[grade] if grade < len(recall) else None
        rows.append([f"{grade}", *cells, DASHED if share is None else f"{share:.2f}"])
    return table(["", *range(len(matrix)), "recall"], rows, caption=ARMS[name], class_="confusion")
