"""The questions of a stranger, and what evaluation.json answers, in words."""

import dataclasses

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.memorization import NEARER
from idrid_jax.evaluation.report.entries import bounds, closeness_of, entry_of, missing, number
from idrid_jax.evaluation.report.figures import fixed
from idrid_jax.evaluation.report.gather import Run, command

GOOD, BAD, OPEN, NONE = "good", "bad", "open", "none"
NO_GRADES = "{} is unconditional: its images have no grades to learn from"
SIGNS = {GOOD: "✓", BAD: "!", OPEN: "~", NONE: "?"}  # beside the colour, for those who do not see it


@dataclasses.dataclass(frozen=True)
class Verdict:
    tone: str
    headline: str
    details: tuple[str, ...] = ()


def closeness(run: Run) -> Verdict:
    """KID beside that of held-out photographs, of every feature network, and what pixels say of fine detail."""
    found = closeness_of(run)
    if not found:
        return _absent(run, "closeness")
    apart, told, why = [], [], "not measured"
    for network in found["networks"]:
        ours = entry_of(found["rows"], "generated", "kid", network)
        real = entry_of(found["rows"], "held_out_real", "kid", network)
        name = "held-out photographs"
        if number(real) is None:
            real, name = entry_of(found["rows"], "halves", "kid", network), "two halves of the training photographs"
        if number(ours) is None or number(real) is None or not bounds(ours) or not bounds(real):
            why = missing(ours if number(ours) is None else real, why)
            continue
        apart.append(bounds(ours)[0] > bounds(real)[1])
        told.append(f"KID ×1000 by {network}: {_interval(ours, 1000)}; {name} have {_interval(real, 1000)}.")
    if not told:
        return Verdict(NONE, "not judged", (f"{why}.",))
    ours, real = (entry_of(found["rows"], row, "spectrum") for row in ("generated", "held_out_real"))
    if bounds(ours) and bounds(real):
        apart.append(bounds(ours)[0] > bounds(real)[1])
        told.append(f"Detail (spectrum, dB): {_interval(ours)}; held-out photographs have {_interval(real)}.")
    if isinstance(leaked := run.part("augmentation_leak").get("verdict"), str):
        told.append(f"{leaked[:1].upper()}{leaked[1:]}.")
    if any(apart):
        return Verdict(BAD, "told apart from real photographs", tuple(told))
    look = "Look at them all the same: no number here knows a lesion."
    return Verdict(GOOD, "not told apart by these measures", (*told, look))


def _interval(entry, factor=1):
    value, low, high = (fixed(factor * value, 1) for value in (number(entry), *bounds(entry)))
    return f"{value} ({low} to {high})"


def copies(run: Run) -> Verdict:
    found = run.part("memorization")
    share, most = number(found, "copy_rate"), number(found, "threshold")
    tone = OPEN if share is None or most is None else BAD if share > most else GOOD
    if tone == GOOD and (number(found, "c_t") or 0) < NEARER:
        tone = OPEN
    return _worded(run, "memorization", tone)


def membership(run: Run) -> Verdict:
    found = run.part("membership")
    limits, chance = bounds(found), number(found, "untrained_auc")
    tone = OPEN if limits is None or chance is None else BAD if limits[0] > chance else GOOD
    verdict = _worded(run, "membership", tone)
    if limits is None or number(found, "auc") is None:
        return verdict
    low, high = limits
    detail = f"Its scores tell training from held-out photographs with an AUC of {number(found, 'auc'):.2f} "
    detail += f"({low:.2f} to {high:.2f}); 0.5 is chance"
    detail += f", untrained discriminators reach {chance:.2f}." if chance is not None else "."
    return dataclasses.replace(verdict, details=(*verdict.details, detail))


def usefulness(run: Run) -> Verdict:
    found = run.part("usefulness")
    if not found:
        if run.evaluation and not run.network.conditional:
            return Verdict(NONE, "not measured", (NO_GRADES.format(run.config.network) + ".",))
        return Verdict(NONE, "not measured", (f"Run {command(run, ' --usefulness 5')}.",))
    said = str(found.get("verdict", ""))
    return _worded(run, "usefulness", GOOD if said.startswith("a gain") else BAD if said.startswith("a loss") else OPEN)


def reading(run: Run) -> Verdict:
    """Whether a grader of photographs reads the grades that were asked for."""
    found = run.part("grading")
    if not found and run.evaluation and not run.network.conditional:
        return Verdict(NONE, "not measured", (NO_GRADES.format(run.config.network) + ".",))
    limits = bounds(found.get("generated"))
    # never good: the photographs that taught the grader taught the generator too
    verdict = _worded(run, "grading", OPEN if limits is None or limits[0] > 0 else BAD)
    headline, _, numbers = verdict.headline.partition(" (")
    real = number(found.get("held_out"), "kappa")
    details = [f"{numbers[:1].upper()}{numbers[1:].rstrip(')')}."] if numbers else []
    details += [f"In held-out photographs: kappa {real:.2f}."] if real is not None else []
    if limits and limits[0] > 0:
        details.append("The same photographs taught both: grades differ, which does not say that they are right.")
    return dataclasses.replace(verdict, headline=headline, details=(*verdict.details, *details))


def collapse(run: Run) -> Verdict:
    found = run.part("quality.collapse")
    tone = {True: BAD, False: GOOD}.get(found.get("collapsed"), OPEN)
    verdict = _worded(run, "quality.collapse", tone)
    by_grade = run.part("quality.by_grade")
    within = [g for g in GRADES if ((by_grade.get(g) or {}).get("collapse") or {}).get("collapsed")]
    if within:
        details = *verdict.details, f"Collapsed within a grade: {', '.join(within)}."
        return dataclasses.replace(verdict, details=details, tone=BAD)
    return verdict


QUESTIONS = {  # question: (its section, verdict)
    "Are they close to real photographs?": ("closeness", closeness),
    "Are they copies of patients' photographs?": ("copies", copies),
    "Does the discriminator give away who was trained on?": ("copies", membership),
    "Do they help to train a grader?": ("usefulness", usefulness),
    "Do they show the grade that was asked for?": ("reading", reading),
    "Has the generator collapsed to few images?": ("training", collapse),
}


def _worded(run, name, tone) -> Verdict:
    """What the part says itself: "word: detail"."""
    found = run.part(name)
    if not found:
        return _absent(run, name)
    if not isinstance(found.get("verdict"), str):
        return Verdict(NONE, "not judged", (f"{missing(found)}.",))
    headline, _, detail = found["verdict"].partition(": ")
    if headline.startswith("not "):  # "not judged", "not measurable"
        tone = NONE
    return Verdict(tone, headline, (f"{detail[:1].upper()}{detail[1:]}.",) if detail else ())


def _absent(run, name):
    older = "An older version of idrid-jax wrote evaluation.json: run" if run.evaluation else "Run"
    return Verdict(NONE, "not measured", (f"{older} {command(run)}.",))
