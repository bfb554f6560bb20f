"""Labels of a release: the CSV files of parts B and C, matched to photographs, and their cells checked."""

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from idrid_jax.data import layout
from idrid_jax.data.release_files import Part, Source
from idrid_jax.errors import UserError


def read_labels(
    part: Part, kind: str, split: str, official: str, wanted: dict[str, str], photographs: dict[str, Source]
) -> tuple[Source | None, dict[str, dict[str, str]]]:
    """Read the CSV file of a split: the file, and id -> column -> cell; (None, {}) without file and photographs.

    Args:
      part: where to look.
      kind: what the file's name contains, in lower case, such as "disease grading".
      split: "train" or "test".
      official: the file's official name below the ground truth folder, for messages.
      wanted: the columns that must be there: their letters in lower case -> their official title.
      photographs: ids of the split's photographs. Each must have a row, and each row a photograph.

    Raises UserError for a missing file, a file that is not CSV, a missing column, an id without a row or twice, and a
    row without a photograph.
    """
    source = _find_csv(part, kind, split)
    if source is None:
        if photographs:
            path = f"{layout.PARTS[part.letter]}/{layout.TRUTHS[part.letter]}/{official}"
            raise UserError(f"{part.root}: its file '{path}' is missing; copy it from the official release")
        return None, {}
    rows = _read_rows(source, wanted)
    if lost := [name for name in rows if name not in photographs]:
        raise UserError(f"{source}: row {lost[0]} has no photograph{_more(lost)}; add the file or remove the row")
    if lost := [name for name in photographs if name not in rows]:
        raise UserError(f"{photographs[lost[0]]}: no row in {source}{_more(lost)}; add the row or remove the file")
    return source, rows


def parse_label(source: Source, name: str, column: str, cell: str, allowed: Sequence[int]) -> int:
    """Parse a cell as a label. Raises UserError, naming file, id and column, unless it is one of `allowed`."""
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if value not in allowed:
        raise UserError(f"{source}: {name} has '{column}' {cell!r}; it must be {allowed[0]} to {allowed[-1]}")
    return int(value)


def parse_pixel(source: Source, name: str, column: str, cell: str) -> float:
    """Parse a cell as a coordinate. Raises UserError, naming file, id and column, unless it is a number from 0."""
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UserError(f"{source}: {name} has '{column}' {cell!r}; it must be a number of pixels from 0")
    return value


def split_of(name: str) -> str | None:
    """Return the split that a file's or folder's name mentions, "train" or "test"; None if it mentions neither."""
    lower = name.lower()
    return "train" if "training" in lower else "test" if "testing" in lower else None


def _find_csv(part: Part, kind: str, split: str) -> Source | None:
    """Find a split's CSV file by the words in its name."""
    for names, source in sorted(part.files.items()):
        file = names[-1].lower()
        if names[0].lower().startswith("2.") and file.endswith(".csv") and kind in file and split_of(file) == split:
            return source
    return None


def _read_rows(source: Source, wanted: dict[str, str]) -> dict[str, dict[str, str]]:
    """Read id -> column -> cell. Columns are named by their letters; blank columns and rows are skipped."""
    import pandas  # imported late: it takes half a second, and only reading a release needs it

    try:
        text = source.read().decode("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        width = max(line.count(",") for line in text.splitlines()) + 1  # rows may be longer than the header
        table = pandas.read_csv(
            io.StringIO(text), header=None, names=range(width), dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except (ValueError, pandas.errors.ParserError) as error:  # a wrong encoding is a ValueError, too
        raise UserError(f"{source}: not a CSV file ({' '.join(str(error).split())}); get another copy of it") from error
    table = table.fillna("").map(str.strip)
    titles = ["".join(filter(str.isalpha, title.lower())).replace("oedema", "edema") for title in table.iloc[0]]
    named = [i for i, title in enumerate(titles) if title and title not in titles[:i]]
    table = table.iloc[1:, named].set_axis([titles[i] for i in named], axis=1)
    key = next((column for column in ("imagename", "imageno") if column in table), None)
    missing = [title for column, title in wanted.items() if column not in table]
    if key is None or missing:
        raise UserError(f"{source}: no column '{'Image name' if key is None else missing[0]}'; get the official file")
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(table.to_dict("records"), start=2):
        if not any(row.values()):
            continue
        name = PurePosixPath(row[key])
        name = name.stem if name.suffix.lower() in layout.PHOTO_SUFFIXES else str(name)
        if not row[key] or name in rows:
            what = f"the id {name} a second time" if row[key] else "no id"
            raise UserError(f"{source}: row {number} has {what}; give each photograph one row")
        rows[name] = row
    return rows


def _more(lost: list[str]) -> str:
    return f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
