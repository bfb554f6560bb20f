"""HTML as nested calls: `tag("p", "a < b")` escapes text, and lets through only what came from `tag` itself."""

import base64
import html
from collections.abc import Iterable, Sequence

import numpy as np

from idrid_jax.images import encode_image

_VOID = {"img", "meta", "br", "hr"}
LARGEST = 256  # pixels of an embedded image's side; larger ones are averaged down
COLOURS = 6  # of runs in page.css, over and over
BLOCKY = 96  # smaller images are enlarged pixel by pixel, not blurred


class Markup(str):
    """Text that is markup already."""


def tag(name: str, /, *children, **attributes) -> Markup:
    """<name attributes>children</name>. Attributes: `class_` is class, `stroke_width` is stroke-width, None is left
    out. Children: markup, other values (escaped), None (nothing) and iterables of these."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>" + ("" if name in _VOID else f"{joined(children)}</{name}>"))


def joined(children) -> Markup:
    """Children as `tag` takes them, one after another."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str) or not isinstance(children, Iterable):
        return Markup(html.escape(str(children)))
    return Markup("".join(joined(child) for child in children))


def table(head: Sequence | None, rows: Sequence[Sequence], *, caption=None, class_: str = "") -> Markup:
    """A table whose first column names the rows, in a box that scrolls by itself where it is too wide.

    A row of one cell is a heading of those below it."""
    width = max(map(len, rows), default=1)

    def cells(row):
        if len(row) == 1 < width:
            return tag("th", row, colspan=width, scope="rowgroup")
        return [tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])]

    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", tag("tr", (tag("th", cell, scope="col") for cell in head))) if head else None,
            tag("tbody", (tag("tr", cells(row)) for row in rows)),
            class_=class_ or None,
        ),
        class_="wide",
    )


def image(pixels: np.ndarray, alt: str) -> Markup:
    """uint8 [R, R, C] -> an <img> that holds it as PNG, at most LARGEST pixels a side."""
    pixels = np.asarray(pixels)
    factor = -(-pixels.shape[0] // LARGEST)
    if factor > 1:
        side = pixels.shape[0] // factor
        cut = pixels[: side * factor, : side * factor].astype(np.float32)
        pixels = np.rint(cut.reshape(side, factor, side, factor, -1).mean((1, 3))).astype(np.uint8)
    data = base64.b64encode(encode_image(pixels, "png")).decode()
    return tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=alt,
        width=pixels.shape[1],
        height=pixels.shape[0],
        class_="blocky" if pixels.shape[0] < BLOCKY else None,
    )


def swatch(colour: int) -> Markup:
    """A square in a run's colour."""
    return joined((_square(colour), Markup("&#8288;")))  # a word joiner: it stays with the name


def _square(colour):
    return tag("span", class_=f"swatch c{colour % COLOURS}", aria_hidden="true")


def hint(*children) -> Markup:
    """A paragraph in small print."""
    return tag("p", children, class_="hint")


def absent(*children) -> Markup:
    """A paragraph on what is not there."""
    return tag("p", children, class_="absent")
