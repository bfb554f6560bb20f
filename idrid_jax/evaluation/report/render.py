"""Fill the templates: one HTML page without scripts that loads nothing."""

import base64

import jinja2
import numpy as np

import idrid_jax
from idrid_jax.evaluation.memorization import C_T_LIMIT, QUANTILES
from idrid_jax.evaluation.report import cards, closeness, plots, sections
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.verdicts import QUESTIONS
from idrid_jax.images import encode_image

SECTIONS = {  # id: title; templates/<id>.html.j2 lays each out
    "samples": "Generated images next to photographs",
    "training": "Training",
    "closeness": "Closeness to real photographs",
    "memorization": "Memorization of training photographs",
    "usefulness": "Usefulness for training a grader",
    "grading": "Grades of the images",
    "data": "Data card",
    "model": "Model card",
}
MAX_SIDE = 256  # pixels of an embedded image; larger ones are averaged down
PIXELATED_SIDE = 96  # smaller images are enlarged pixel by pixel


def page(runs: list[Run]) -> str:
    """Return the report on one run or several as an HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("idrid_jax.evaluation.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"png": _embed, "x": _coordinate, "color": plots.color_class}
    environment.tests |= {"run": lambda value: isinstance(value, Run), "cell": lambda x: isinstance(x, sections.Cell)}
    return environment.get_template("page.html.j2").render(
        runs=runs,
        several=len(runs) > 1,
        sections=SECTIONS,
        verdicts=[
            (question, id, [(run, verdict_of(run)) for run in runs]) for question, (id, verdict_of) in QUESTIONS.items()
        ],
        training=sections.training(runs),
        closeness=closeness.closeness(runs),
        memorization=sections.memorization(runs),
        usefulness=sections.usefulness(runs),
        grading=sections.grading(runs),
        data_cards=cards.data(runs),
        model=cards.model(runs),
        c_t_threshold=C_T_LIMIT,
        quantiles=", ".join(f"{q:.0%}" for q in QUANTILES),
        version=idrid_jax.__version__,
    )


def _embed(pixels: np.ndarray) -> dict:
    """uint8 [R, R, C] -> a data URI of it as PNG, at most MAX_SIDE pixels wide, and its size."""
    factor = -(-pixels.shape[0] // MAX_SIDE)
    if factor > 1:
        side = pixels.shape[0] // factor
        cropped = pixels[: side * factor, : side * factor].astype(np.float32)
        pixels = np.rint(cropped.reshape(side, factor, side, factor, -1).mean((1, 3))).astype(np.uint8)
    data = base64.b64encode(encode_image(pixels, "png")).decode()
    return {
        "source": f"data:image/png;base64,{data}",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "pixelated": pixels.shape[0] < PIXELATED_SIDE,
    }


def _coordinate(value: float) -> str:
    """Return a coordinate of a plot with at most one decimal."""
    return f"{value:z.1f}".removesuffix(".0")
