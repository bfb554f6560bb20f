"""Answers to the six questions at the top of the report, from evaluation.json."""

import dataclasses
from collections.abc import Callable

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.memorization import C_T_LIMIT
from idrid_jax.evaluation.report.gather import Run
from idrid_jax.evaluation.report.results import interval, metric, missing_reason, number

GOOD, BAD, OPEN, NONE = "good", "bad", "open", "none"
SIGNS = {GOOD: "✓", BAD: "!", OPEN: "~", NONE: "?"}  # next to the color, for readers who do not see it
NO_GRADES = "{} is unconditional: its images have no grades"

SAME_PHOTOGRAPHS = (
    "Generator and grader have the same training photographs: the grades differ visibly, which does not prove them "
    "right."
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    tone: str
    headline: str
    details: tuple[str, ...] = ()

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]


def closeness(run: Run) -> Verdict:
    """Compare the intervals of KID (every extractor) and of the power spectrum with those of held-out photographs."""
    results = run.results("closeness")
    if not results:
        return _not_measured(run)
    rows, distinguishable, details, reason = results.get("rows") or {}, [], [], "no pretrained network was available"
    networks, against = results.get("networks") or [], results.get("trained_against") or []
    for network in [name for name in networks if name not in against] or networks:
        generated, real = (metric(rows, row, "kid", network) for row in ("generated", "held_out_real"))
        reference = "held-out photographs"
        if number(real) is None:
            real, reference = metric(rows, "halves", "kid", network), "two halves of the training photographs"
        if number(generated) is None or number(real) is None or not interval(generated) or not interval(real):
            reason = missing_reason(generated if number(generated) is None else real, reason)
            continue
        distinguishable.append(interval(generated)[0] > interval(real)[1])
        texts = _interval_text(generated, 1000), _interval_text(real, 1000)
        details.append("KID x1000 by {}: {}; {}: {}.".format(network, texts[0], reference, texts[1]))
    if not details:
        return Verdict(NONE, "not judged", (_sentence(reason),))
    generated, real = (metric(rows, row, "spectrum") for row in ("generated", "held_out_real"))
    if interval(generated) and interval(real):
        distinguishable.append(interval(generated)[0] > interval(real)[1])
        texts = _interval_text(generated), _interval_text(real)
        details.append("Power spectrum, dB: {}; held-out photographs: {}.".format(*texts))
    if isinstance(leak := run.results("augmentation_leak").get("verdict"), str):
        details.append(_sentence(leak))
    if any(distinguishable):
        return Verdict(BAD, "distinguishable from real photographs", tuple(details))
    caution = "Examine the images all the same: none of these metrics recognizes a lesion."
    return Verdict(GOOD, "not distinguishable by these metrics", (*details, caution))


def memorization(run: Run) -> Verdict:
    """Compare the share of copies with its threshold, and C_T with its own."""
    results = run.results("memorization")
    rate, threshold = number(results, "copy_rate"), number(results, "threshold")
    tone = OPEN if rate is None or threshold is None else BAD if rate > threshold else GOOD
    if tone == GOOD and (number(results, "c_t") or 0) < C_T_LIMIT:
        tone = OPEN
    return _stated(run, "memorization", tone)


def membership(run: Run) -> Verdict:
    """Compare the AUC of membership inference with that of untrained discriminators."""
    results = run.results("membership")
    bounds, auc, untrained = interval(results), number(results, "auc"), number(results, "untrained_auc")
    tone = OPEN if bounds is None or untrained is None else BAD if bounds[0] > untrained else GOOD
    verdict = _stated(run, "membership", tone)
    if bounds is None or auc is None:
        return verdict
    detail = f"Its logits separate training from held-out photographs with an AUC of {auc:.2f} "
    detail += f"({bounds[0]:.2f} to {bounds[1]:.2f}); 0.5 is chance"
    detail += f", untrained discriminators reach {untrained:.2f}." if untrained is not None else "."
    return dataclasses.replace(verdict, details=(*verdict.details, detail))


def usefulness(run: Run) -> Verdict:
    """State the difference of kappa that synthetic training images make."""
    results = run.results("usefulness")
    if not results and run.evaluation and not run.network.conditional:
        return Verdict(NONE, "not measured", (_sentence(NO_GRADES.format(run.config.network)),))
    if not results:
        return Verdict(NONE, "not measured", (f"Run {run.command(' --usefulness 5')}.",))
    sizes = results.get("sizes") or {}
    size = "full" if "full" in sizes else "generator"  # of the photographs: the question that matters to a user
    stated = str((sizes.get(size) or {}).get("verdict", ""))
    tone = GOOD if stated.startswith("a gain") else BAD if stated.startswith("a loss") else OPEN
    if not sizes:
        return _stated(run, "usefulness", tone)
    verdict = _stated(run, f"usefulness.sizes.{size}", tone)
    return dataclasses.replace(verdict, details=(*verdict.details, f"With photographs at {size} size."))


def grading(run: Run) -> Verdict:
    """State whether a grader of photographs agrees with the requested grades.

    Never GOOD: the photographs that trained the grader trained the generator, too.
    """
    results = run.results("grading")
    if not results and run.evaluation and not run.network.conditional:
        return Verdict(NONE, "not measured", (_sentence(NO_GRADES.format(run.config.network)),))
    bounds = interval(results.get("generated"), "qwk_interval")
    verdict = _stated(run, "grading", OPEN if bounds is None or bounds[0] > 0 else BAD)
    headline, _, numbers = verdict.headline.partition(" (")
    held_out = number(results.get("held_out"), "qwk")
    details = list(verdict.details)
    if numbers:
        details.append(_sentence(numbers.rstrip(")")))
    if held_out is not None:
        details.append(f"On held-out photographs: kappa {held_out:.2f}.")
    if bounds and bounds[0] > 0:
        details.append(SAME_PHOTOGRAPHS)
    return dataclasses.replace(verdict, headline=headline, details=tuple(details))


def collapse(run: Run) -> Verdict:
    """State whether the images are too similar to each other, in all or within a grade."""
    tone = {True: BAD, False: GOOD}.get(run.results("quality.collapse").get("collapsed"), OPEN)
    verdict = _stated(run, "quality.collapse", tone)
    by_grade = run.results("quality.by_grade")
    collapsed = [g for g in GRADES if ((by_grade.get(g) or {}).get("collapse") or {}).get("collapsed")]
    if not collapsed:
        return verdict
    details = (*verdict.details, f"Collapsed within a grade: {', '.join(collapsed)}.")
    return dataclasses.replace(verdict, details=details, tone=BAD)


QUESTIONS: dict[str, tuple[str, Callable[[Run], Verdict]]] = {  # question: (section of the page, its verdict of a run)
    "Are the images close to real photographs?": ("closeness", closeness),
    "Are they copies of training photographs?": ("memorization", memorization),
    "Does the discriminator reveal which photographs it was trained on?": ("memorization", membership),
    "Do they help to train a grader?": ("usefulness", usefulness),
    "Do they show the requested grade?": ("grading", grading),
    "Has the generator collapsed to a few images?": ("training", collapse),
}


def _stated(run, name, tone) -> Verdict:
    """Return the verdict that a section of evaluation.json states as "headline: detail"."""
    results = run.results(name)
    if not results:
        return _not_measured(run)
    if not isinstance(results.get("verdict"), str):
        return Verdict(NONE, "not judged", (_sentence(missing_reason(results)),))
    headline, _, detail = results["verdict"].partition(": ")
    if headline.startswith("not "):  # "not judged", "not measurable"
        tone = NONE
    return Verdict(tone, headline, (_sentence(detail),) if detail else ())


def _not_measured(run) -> Verdict:
    return Verdict(NONE, "not measured", (f"Run {run.command()}.",))


def _sentence(text) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _interval_text(entry, factor=1) -> str:
    value, low, high = (f"{factor * x:z.1f}" for x in (number(entry), *interval(entry)))
    return f"{value} ({low} to {high})"
