"""The section on copies: the likest pairs, beside how like held-out photographs are."""

from idrid_jax.evaluation.memorization import NEARER, QUANTILES
from idrid_jax.evaluation.report.entries import LACKING, missing, number, unjudged, unmeasured, written
from idrid_jax.evaluation.report.gather import Run, command
from idrid_jax.evaluation.report.markup import absent, hint, image, swatch, table, tag


def section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "Each generated image beside the training photograph that it is most like, the likest pairs first. "
            "Likeness says how much nearer it is to that one than to any other, by coarse structure and colour, "
            "whatever the brightness, also mirrored or upside down: 1 is the same picture, 0.5 twice as near, which is "
            "a copy. Held-out photographs say what chance gives.",
        )
    ]
    several, rows, apart = len(runs) > 1, [], []
    for colour, run in enumerate(runs):
        found = run.part("memorization")
        if not found:
            parts.append(unmeasured(run, "Copies were not looked for.", several))
        elif not isinstance(found.get("generated"), dict):
            parts.append(unjudged(run, missing(found), several))
        else:
            rows.append(_row([swatch(colour), run.name] if several else "generated", found["generated"]))
            rows.append(_row("held-out real", found.get("held_out")))
            apart += _apart([swatch(colour), run.name] if several else "generated", found.get("distances"))
    if rows:
        parts.append(table(["likeness to the nearest", "median", "90 %", "99 %", "most", "authentic"], rows))
        parts.append(
            hint(
                "Columns: half, 90 % and 99 % of the images are at most so like their nearest training photograph. "
                "Authentic: farther from it than that photograph is from its own nearest one."
            )
        )
    if apart:
        head = ["how far the nearest is", *(f"{q:.0%}" for q in QUANTILES), "AuthPct", "C_T"]
        parts.append(table(head, apart))
        parts.append(
            hint(
                "The same without likeness, by coarse structure and by networks that never saw these photographs (of "
                "blurred images, or they would hear the generator's texture more than what is on the image): "
                f"{', '.join(f'{q:.0%}' for q in QUANTILES)} of the images are at most so far from their nearest "
                "training photograph; 1 is a training photograph's median to its own nearest. AuthPct: the share that "
                f"is authentic. C_T below {NEARER}: as a whole nearer than photographs of other patients are."
            )
        )
    return [*parts, (_pairs(run, colour, several) for colour, run in enumerate(runs))]


def _row(label, of):
    of = of if isinstance(of, dict) else {}
    cells = [written(of.get("similarity"), 2, key=quantile) for quantile in ("0.5", "0.9", "0.99", "1")]
    share = number(of, "authentic")
    return [label, *cells, LACKING if share is None else f"{share:.0%}"]


def _apart(label, distances):
    """Rows of "distances", which an older version did not write."""
    rows = []
    for name, found in distances.items() if isinstance(distances, dict) else ():
        rows.append([tag("i", name)])
        for key, caption in (("generated", label), ("held_out", "held-out real")):
            of = found.get(key) or {}
            cells = [written(of.get("nearest"), 2, key=str(q)) for q in QUANTILES]
            share, c_t = number(of, "authentic"), number(found, "c_t")
            told = LACKING if c_t is None else f"{c_t:+.1f}"
            authentic = LACKING if share is None else f"{share:.0%}"
            rows.append([caption, *cells, authentic, told if key == "generated" else ""])
    return rows


def _pairs(run, colour, several):
    found = run.part("memorization")
    if not run.pairs:
        why = f"{run.name}: copies.png is gone, or goes with another evaluation. Run "
        return absent(why, tag("code", command(run)), ".") if found.get("pairs") else None
    shown = []
    for drawn, real, entry in run.pairs:
        name = entry.get("training")
        likeness = tag("figcaption", tag("b", written(entry, 2, key="similarity")), f" {name}")
        pictures = image(drawn, "generated image"), image(real, f"training photograph {name}")
        shown.append(tag("figure", pictures, likeness, class_="pair"))
    most = written((found.get("held_out") or {}).get("similarity"), 2, key="1")
    return [
        tag("h3", swatch(colour), run.name) if several else None,
        hint(
            "Above generated, below its nearest training photograph, with their likeness. The likest held-out "
            f"photograph has {most}."
        ),
        tag("div", shown, class_="pairs"),
    ]
