"""The section of images: generated ones beside photographs, by grade."""

from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.markup import absent, image, swatch, tag


def section(runs: list[Run]) -> list:
    parts = [
        tag(
            "p",
            "Not picked: the first images that the evaluation's seed draws, beside photographs of the training set, "
            "taken evenly from it, in the same preparation and size.",
        )
    ]
    for colour, run in enumerate(runs):
        if len(runs) > 1:
            parts.append(tag("h3", swatch(colour), run.name))
        parts += [absent(_sentence(run.notes[name])) for name in ("samples", "release") if name in run.notes]
        for caption, drawn, real in run.samples:
            few = "" if len(real) == len(drawn) else f" (there are {len(real)})"
            columns = "five" if caption else "six"
            sheets = [_sheet(drawn, "generated", f"generated {caption}", columns)]
            if len(real):
                sheets.append(_sheet(real, f"real{few}", f"photograph {caption}", columns))
            parts.append(tag("h4", caption or f"{len(drawn)} images of {run.config.network}, which knows no grades"))
            parts.append(tag("div", sheets, class_="beside"))
    return parts


def _sheet(images, title, alt, columns):
    pictures = tag("div", (image(pixels, alt.strip()) for pixels in images), class_=f"sheet {columns}")
    return tag("figure", tag("figcaption", title), pictures)


def _sentence(text):
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
