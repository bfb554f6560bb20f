"""The page: verdicts first, then the sections; one file, no scripts, nothing loaded from elsewhere."""

from pathlib import Path

import idrid_jax
from idrid_jax.evaluation.report import cards, closeness, memorization, reading, samples, training, usefulness
from idrid_jax.evaluation.report.gather import MADE_UP, Run
from idrid_jax.evaluation.report.markup import Markup, swatch, tag
from idrid_jax.evaluation.report.verdicts import QUESTIONS, SIGNS

SECTIONS = {  # id: (title, what it shows)
    "samples": ("Images beside real photographs", samples.section),
    "training": ("Training", training.section),
    "closeness": ("Closeness to real photographs", closeness.section),
    "copies": ("Copies of training photographs", memorization.section),
    "usefulness": ("Usefulness for a grader", usefulness.section),
    "reading": ("Grades read in the images", reading.section),
    "data": ("Data card", cards.data_section),
    "model": ("Model card", cards.model_section),
}
ALONE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser itself refuses anything else


def html(runs: list[Run]) -> str:
    """The report on one run or several, as a whole document."""
    title = "Synthetic retinal photographs: " + ", ".join(run.name for run in runs)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=ALONE),
        tag("title", title),
        tag("style", Markup((Path(__file__).parent / "page.css").read_text())),
    )
    sections = [
        tag("section", tag("h2", heading), section(runs), id=name) for name, (heading, section) in SECTIONS.items()
    ]
    body = tag(
        "body",
        tag("header", _header(runs)),
        tag("main", _verdicts(runs), _contents(), sections),
        tag(
            "footer",
            f"Made by idrid_jax {idrid_jax.__version__}. Synthetic images are no photographs of patients, and not for "
            "diagnosis.",
        ),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _header(runs):
    lines = []
    for i, run in enumerate(runs):
        step = run.taken
        when = "no checkpoint" if step is None else f"step {step} ({step * run.config.batch_size / 1000:g} kimg)"
        size = f"{run.network.size} × {run.network.size} pixels"
        lines.append(
            tag(
                "p",
                [swatch(i), tag("b", run.name), ": "] if len(runs) > 1 else None,
                f"{run.config.network} at {when}, {size}, trained on release {run.record['data']['name']} "
                f"({run.record['data']['fingerprint'][:12]})",
                ": a phantom, no photographs" if run.kind == MADE_UP else None,
            )
        )
    title = "Synthetic retinal photographs: what they are worth"
    return [tag("h1", title), lines]


def _verdicts(runs):
    boxes = []
    for question, (section, judge) in QUESTIONS.items():
        answers = []
        for i, run in enumerate(runs):
            verdict = judge(run)
            answers.append(
                tag(
                    "div",
                    tag(
                        "p",
                        [swatch(i), run.name, ": "] if len(runs) > 1 else None,
                        tag("span", SIGNS[verdict.tone], class_="sign", aria_hidden="true"),
                        " ",
                        tag("strong", verdict.headline),
                        class_="headline",
                    ),
                    (tag("p", detail) for detail in verdict.details),
                    class_=f"answer {verdict.tone}",
                )
            )
        boxes.append(tag("article", tag("h3", tag("a", question, href=f"#{section}")), answers, class_="verdict"))
    return tag("section", tag("h2", "Verdicts"), tag("div", boxes, class_="verdicts"), id="verdicts")


def _contents():
    links = [tag("li", tag("a", heading, href=f"#{name}")) for name, (heading, _) in SECTIONS.items()]
    return tag("nav", tag("ol", links), aria_label="Sections")
