"""The summary that `idrid-jax evaluate` prints: the six questions, each with its numbers and their references."""

MAX_LINES = 30
MAX_SKIPPED = 2  # lines on weights that were skipped
MAX_EXTRACTORS = 2  # rows of KID; the other extractors are in the tables
NAME_WIDTH, CELL_WIDTH = 62, 24


def text(result: dict) -> str:
    """Summarize what `evaluate` returned in at most MAX_LINES lines, without a newline at the end.

    Each question has rows of a number of the generated images next to the same of held-out photographs (or the
    reference that is named), and a verdict in words if it has one.
    """
    rows = [
        *_quality(result["quality"]),
        *_closeness(result["closeness"]),
        *_memorization(result.get("memorization")),
        *_membership(result.get("membership")),
        *_grading(result.get("grading")),
        *_usefulness(result.get("usefulness")),
    ]
    lines = [describe(result["run"]), "", _line("", "generated", "held-out photographs")]
    lines += [_line(*row) for row in rows]
    verdicts = _verdicts(result)
    return "\n".join([*lines, "", *verdicts] if verdicts else lines)


def describe(run: dict) -> str:
    """Describe what was measured: network, checkpoint, release and size."""
    text = (
        f"{run['network']} at step {run['step']} ({run['kimg']:g} kimg, {run['chosen']}; batch statistics: "
        f"{run['batch_statistics']}) on release {run['release']} ({run['fingerprint'][:12]}), "
        f"{run['size']}x{run['size']}x{run['channels']}, {run['crop']}"
    )
    if "pixels" in run:
        text += f", compared at {run['pixels']}x{run['pixels']}"
    if "conditioning_strength" in run:
        strength = run["conditioning_strength"]
        text += f"\nIts conditioning strength is {strength:.1%}: it ignores part of the requested grade."
    return text


def _line(name, value, reference=""):
    return f"{name:<{NAME_WIDTH}}  {value:>{CELL_WIDTH}}  {reference:>{CELL_WIDTH}}".rstrip()


def _quality(result):
    rows = []
    for name, key, decimals in (("SSIM", "ssim", 3), ("PSNR in dB", "psnr", 2)):
        values = (_number(result[row][key], decimals) for row in ("generated", "held_out_real"))
        rows.append((f"1 quality: {name}, all pairs with training", *values))
    within = (_number(result[row]["ssim"], 3) for row in ("within_generated", "within_training"))
    generated, training = within
    return [*rows, ("  SSIM within the set (collapse: above by 0.1)", generated, f"training: {training}")]


def _closeness(result):
    rows = []
    entries = {row: result["rows"][row] for row in ("generated", "held_out_real")}
    for network in result["networks"][:MAX_EXTRACTORS]:
        cells = (_interval(entries[row]["features"][network]["kid"], 1000, 1) for row in entries)
        trained = ", trained against" if network in result["trained_against"] else ""
        rows.append((f"2 closeness: KID x1000, {network.partition(' ')[0]}{trained}", *cells))
    if not result["networks"]:
        rows.append(("2 closeness by features", "not measured", ""))
    if len(result["networks"]) > MAX_EXTRACTORS:
        rows.append((f"  ({len(result['networks']) - MAX_EXTRACTORS} more extractors in the tables)", ""))
    rows.append(("  power spectrum, difference in dB", *(_interval(entries[row]["spectrum"], 1, 1) for row in entries)))
    return rows


def _memorization(result):
    if result is None or "missing" in result:
        return _not_measured("3 memorization", result)
    copies = (f"{result[name]['num_copies']} of {result[name]['images']}" for name in ("generated", "held_out"))
    return [
        ("3 memorization: copies of training photographs", *copies),
        ("  C_T (below -3: nearer than new images)", f"{result['c_t']:+.1f}", "expected: 0"),
    ]


def _membership(result):
    if result is None or "missing" in result:
        return _not_measured("4 membership", result)
    value = f"{result['auc']:.2f} ({result['interval'][0]:.2f} to {result['interval'][1]:.2f})"
    return [("4 membership: AUC of the discriminator's logits", value, f"untrained: {result['untrained_auc']:.2f}")]


def _grading(result):
    if result is None or "missing" in result:
        return _not_measured("5 grading", result)
    graders = {"a grader": result} | ({"the saved grader": result["saved"]} if "saved" in result else {})
    return [
        (
            f"5 grading: kappa, {name} of {entry['pixels']}-pixel photographs",
            _kappa(entry["generated"]),
            _kappa(entry["held_out"]),
        )
        for name, entry in graders.items()
    ]


def _usefulness(result):
    if result is None:
        return [("6 usefulness", "not measured", "--usefulness 5 does")]
    if "missing" in result:
        return _not_measured("6 usefulness", result)
    rows = []
    for size, comparison in result["sizes"].items():
        kappas = {arm: measures["qwk"] for arm, measures in comparison["arms"].items()}
        baseline = f"{_words(comparison['baseline'])}: {kappas[comparison['baseline']]['mean']:.2f}"
        arms = dict.fromkeys([comparison.get("best", "synthetic_balanced"), "synthetic_only"])  # others: in the tables
        for arm in (arm for arm in arms if arm in kappas):
            value = {"value": kappas[arm]["mean"], "interval": kappas[arm]["interval"]}
            rows.append((f"6 usefulness: kappa, {size} size, {_words(arm)}", _interval(value, 1, 2), baseline))
    return rows


def _words(arm):
    return arm.replace("_", " ")


def _not_measured(name, result):
    return [] if result is None else [(name, "not measured", "")]


def _verdicts(result) -> list[str]:
    lines = [f"Diversity: {result['quality']['collapse']['verdict']}."]
    for name in ("memorization", "membership", "grading", "augmentation_leak", "usefulness"):
        section = result.get(name)
        if section is not None:
            verdict = section["verdict"] if "verdict" in section else f"not measured: {section['missing']}"
            lines.append(f"{name.capitalize().replace('_', ' ')}: {verdict}.")
    if by_grade := _by_grade(result.get("usefulness", {})):
        lines.append(by_grade)
    skipped = list(result.get("skipped_weights", {}).items())[:MAX_SKIPPED]
    return lines + [f"Skipped {name}: {why}." for name, why in skipped]


def _by_grade(usefulness) -> str:
    """Return the verdicts by grade, without their numbers, on one line; for photographs at full size, if measured."""
    sizes = usefulness.get("sizes", {})
    verdicts = sizes.get("full", sizes.get("generator", {})).get("by_grade", {})
    short = [f"{grade} {verdict.partition(':')[0]}" for grade, verdict in verdicts.items()]
    return f"Usefulness by grade: {', '.join(short)}." if short else ""


def tables(result: dict) -> str:
    """Render every table of the result, as `--verbose` prints them."""
    from idrid_jax.evaluation import (
        augmentation_leak,
        closeness,
        grading,
        membership,
        memorization,
        quality,
        usefulness,
    )  # fmt: skip

    parts = [quality.table(result["quality"], thesis=result["run"]["network"] == "dcgan28")]
    for module in (closeness, memorization, membership, grading, augmentation_leak, usefulness):
        name = module.__name__.rpartition(".")[2]
        if name in result:
            parts.append(module.table(result[name]))
    return "\n\n".join(parts)


def _number(value, decimals):
    return "-" if value is None else f"{value:.{decimals}f}"


def _interval(entry, factor, decimals):
    value = entry["value"]
    if value is None:
        return "-"
    text = f"{value * factor:.{decimals}f}"
    if entry["interval"] is None:
        return text
    low, high = (f"{bound * factor:.{decimals}f}" for bound in entry["interval"])
    return f"{text} ({low} to {high})"


def _kappa(result):
    if "missing" in result:
        return "-"
    return _interval({"value": result["qwk"], "interval": result["qwk_interval"]}, 1, 2)
