"""The table of graders as text."""

from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.graders.classifiers import CLASSIFIERS

HEADER = ("", "features", "classifier", "setting", "QWK, CV", "QWK, test", "bal. acc.", "ref. AUC", "edema QWK")


def text(result: dict) -> str:
    """Render what `grade.grade` returned: a line for each row, then the chosen one by grade."""
    release, rows = result["release"], result["rows"]
    train, test = (sum(release["photographs"][split]) for split in ("train", "test"))
    lines = [
        f"{release['name']} ({release['fingerprint'][:12]}): {train} training and {test} test photographs",
        f"CV: {release['folds']} folds x {release['repeats']} on the training split, which chose the settings and *;"
        " the test split was read once, afterwards.",
        "95 % intervals over photographs; the last three columns are of the test split.",
        "",
        *_columns([HEADER, *(_row(row) for row in rows)]),
        "",
        *_by_grade(rows[0]),
    ]
    grader = result["grader"]
    saved = grader.get("missing") or f"{grader['features']}, {CLASSIFIERS[grader['classifier']].title}"
    lines.append(f"grader for evaluate: {'none is saved: ' if 'missing' in grader else ''}{saved}")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _row(row) -> tuple[str, ...]:
    setting = ", ".join(f"{name}={value:g}" for name, value in row["setting"].items())
    title = CLASSIFIERS[row["classifier"]].title if row["classifier"] in CLASSIFIERS else "fine-tuned"
    test, referable, edema = (one.get("test", {}) for one in (row, row["referable"], row["edema"]))
    return (
        "*" if row["chosen"] else "",
        row["features"],
        title,
        setting,
        _with_interval(row["cv"], "qwk"),
        _with_interval(test, "qwk"),
        _number(test.get("balanced_accuracy")),
        _number(referable.get("auc")),
        _number(edema.get("qwk")),
    )


def _by_grade(row) -> list[str]:
    """Return recall, AUC and confusion of the chosen row, of the test split (without one, of the cross-validation)."""
    where, found = ("test", row["test"]) if "recall" in row.get("test", {}) else ("CV", row["cv"])
    cells = [(f"* by grade, {where}", "recall", "AUC", *(f"as {label}" for label in range(len(GRADES))))]
    for grade, counts in zip(GRADES, found["confusion"]):
        values = _number(found["recall"][grade]), _number(found["auc"][grade])
        cells.append((grade, *values, *(f"{count:g}" if where == "test" else f"{count:.1f}" for count in counts)))
    return _columns(cells)


def _columns(cells) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]


def _with_interval(found, name) -> str:
    if found.get(name) is None:
        return "-"
    low, high = found[f"{name}_interval"]
    return f"{found[name]:.2f} ({low:.2f} to {high:.2f})"


def _number(value) -> str:
    return "-" if value is None else f"{value:.2f}"
