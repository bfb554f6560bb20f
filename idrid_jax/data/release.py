"""IDRiD as distributed -> records. The other way, images and grades -> a release, is `ReleaseWriter`.

A record says where a photograph's bytes lie and what is known of it; no pixel is decoded here, so that reading the
official release takes well under a second. What the release is: Porwal et al., Data 2018, 3(3):25.
"""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from idrid_jax.data import layout
from idrid_jax.data.layout import GRADES, LESIONS, SPLITS
from idrid_jax.data.masks import read_mask
from idrid_jax.data.release_writer import ReleaseWriter
from idrid_jax.data.source import Part, Source, find_parts
from idrid_jax.errors import UserError

__all__ = [
    "GRADES", "LESIONS", "SPLITS", "Graded", "Located", "Record", "Release", "ReleaseWriter", "Segmented", "Source",
    "read_mask", "read_release",
]  # fmt: skip


@dataclass(frozen=True)
class Graded:
    """Part B: a photograph with its grade 0..4 and its risk of macular oedema 0..2, or -1 where the cell is blank."""

    split: str
    id: str
    image: Source
    grade: int
    edema: int


@dataclass(frozen=True)
class Segmented:
    """Part A: a photograph with a mask for each lesion that it has; an absent lesion is an absent key."""

    split: str
    id: str
    image: Source
    masks: dict[str, Source] = field(hash=False)


@dataclass(frozen=True)
class Located:
    """Part C: a photograph with the centres of disc and fovea, (x, y) in pixels of the photograph."""

    split: str
    id: str
    image: Source
    disc: tuple[float, float]
    fovea: tuple[float, float]


Record = Graded | Segmented | Located


@dataclass(frozen=True)
class Release:
    """The records of a release; () for a part that it has not. The key of a record is (part, split, id): ids repeat."""

    root: Path
    grading: tuple[Graded, ...] = ()
    segmentation: tuple[Segmented, ...] = ()
    localization: tuple[Located, ...] = ()
    digests: dict[Source, str] = field(default_factory=dict, compare=False, repr=False)  # sha256 of those read so far

    def fingerprint(self) -> str:
        """sha256 (hex) over the records, sorted: part, split, id, the sha256 of each file's bytes, labels.

        The same wherever the release lies, zipped or not; another one as soon as a byte, a label or the set of records
        is another. Files are read in threads, each once in the life of this Release and of those `audit` makes of it.
        """
        sources = [source for record in self.records() for source in _sources(record)]
        missing = [source for source in dict.fromkeys(sources) if source not in self.digests]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.digests.update(zip(missing, pool.map(lambda source: digest(source.read()), missing)))
        lines = sorted(_line(record, self.digests) for record in self.records())
        return digest("\n".join(lines).encode())

    def records(self) -> tuple[Record, ...]:
        """All records: B, A, C."""
        return self.grading + self.segmentation + self.localization


def digest(data: bytes) -> str:
    """sha256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def part_of(record: Record) -> str:
    """ "A", "B" or "C"."""
    return {Segmented: "A", Graded: "B", Located: "C"}[type(record)]


def read_release(path) -> Release:
    """Reads IDRiD from where its user put it.

    path: the folder with the zips, the unpacked folders, one of them, one zip, or a folder around them (searched four
    folders deep; doubled folders and literal %20 in names are seen through). Zips are read in place, nothing is
    unpacked. Where a zip and the folder unpacked from it lie side by side, the folder is read. A path that holds two
    releases is refused, naming both.

    Raises UserError (one line) for: no release there (and for the Kaggle mirror, whose grades differ); a damaged zip,
    or one with members that climb out of it; a missing CSV file or one that is not a CSV file; a photograph without a
    row, a row without a photograph; an id given twice; a grade outside 0-4, an oedema risk outside 0-2, a coordinate
    that is no number; a mask without a photograph.
    """
    parts = find_parts(Path(path))
    roots = {part.container for part in parts.values()}
    return Release(
        root=roots.pop() if len(roots) == 1 else Path(path).absolute(),
        grading=_read_grading(parts["B"]) if "B" in parts else (),
        segmentation=_read_segmentation(parts["A"]) if "A" in parts else (),
        localization=_read_localization(parts["C"]) if "C" in parts else (),
    )


def _sources(record: Record) -> list[Source]:
    return [record.image, *(record.masks.values() if isinstance(record, Segmented) else ())]


def _line(record: Record, digests: dict[Source, str]) -> str:
    match record:
        case Graded():
            labels = f"{record.grade} {record.edema}"
        case Segmented():
            labels = " ".join(f"{lesion} {digests[mask]}" for lesion, mask in sorted(record.masks.items()))
        case Located():
            labels = f"{record.disc!r} {record.fovea!r}"
    return "\t".join((part_of(record), record.split, record.id, digests[record.image], labels))


def _split_of(name: str) -> str | None:
    lower = name.lower()
    return "train" if "training" in lower else "test" if "testing" in lower else None


def _photographs(part: Part) -> dict[str, dict[str, Source]]:
    """split -> id -> photograph."""
    found: dict[str, dict[str, Source]] = {split: {} for split in SPLITS}
    for names, source in sorted(part.files.items()):
        file = PurePosixPath(names[-1])
        if names[0].lower() != layout.IMAGES.lower() or file.suffix.lower() not in layout.PHOTO_SUFFIXES:
            continue
        split = _split_of("/".join(names[1:-1]))
        if split is None:
            folders = " and ".join(layout.SPLIT_FOLDERS.values())
            raise UserError(f"{source}: a photograph outside {folders}; move it into one of them")
        if file.stem in found[split]:
            raise UserError(f"{source}: the id {file.stem} a second time, beside {found[split][file.stem]}; keep one")
        found[split][file.stem] = source
    return found


def _read_grading(part: Part) -> tuple[Graded, ...]:
    records = []
    for split, photographs in _photographs(part).items():
        source = _csv_of(part, "disease grading", split, layout.GRADING_CSV[split], bool(photographs))
        rows = _rows(source, {"retinopathygrade": "Retinopathy grade"}) if source else {}
        _match(source, rows, photographs)
        for name, row in rows.items():
            grade = _label(source, name, "Retinopathy grade", row["retinopathygrade"], range(len(GRADES)))
            edema = row.get("riskofmacularedema", "")
            edema = _label(source, name, "Risk of macular edema", edema, layout.EDEMA) if edema else -1
            records.append(Graded(split, name, photographs[name], grade, edema))
    return tuple(records)


def _read_localization(part: Part) -> tuple[Located, ...]:
    records = []
    wanted = {"xcoordinate": "X- Coordinate", "ycoordinate": "Y - Coordinate"}
    for split, photographs in _photographs(part).items():
        centres = []
        for kind, names in (("od_center", layout.DISC_CSV), ("fovea_center", layout.FOVEA_CSV)):
            source = _csv_of(part, kind, split, names[split], bool(photographs))
            rows = _rows(source, wanted) if source else {}
            _match(source, rows, photographs)
            centres.append(
                {
                    name: tuple(_pixel(source, name, title, row[key]) for key, title in wanted.items())
                    for name, row in rows.items()
                }
            )
        disc, fovea = centres
        records += [Located(split, name, photographs[name], disc[name], fovea[name]) for name in disc]
    return tuple(records)


def _read_segmentation(part: Part) -> tuple[Segmented, ...]:
    photographs = _photographs(part)
    masks: dict[tuple[str, str], dict[str, Source]] = {}
    for names, source in sorted(part.files.items()):
        file = PurePosixPath(names[-1])
        if names[0].lower() != layout.TRUTHS["A"].lower() or file.suffix.lower() not in layout.MASK_SUFFIXES:
            continue
        split = _split_of("/".join(names[1:-1]))
        name, _, lesion = file.stem.rpartition("_")
        if lesion not in LESIONS:
            raise UserError(f"{source}: a mask's name ends in one of _{', _'.join(LESIONS)}; rename it")
        if split is None or name not in photographs[split]:
            raise UserError(f"{source}: a mask without its photograph {name}; add the photograph or take the mask away")
        if lesion in masks.setdefault((split, name), {}):
            raise UserError(f"{source}: a second mask of {lesion} for {name}; keep one")
        masks[split, name][lesion] = source
    return tuple(
        Segmented(split, name, image, masks.get((split, name), {}))
        for split in SPLITS
        for name, image in photographs[split].items()
    )


def _csv_of(part: Part, kind: str, split: str, official: str, needed: bool) -> Source | None:
    """The CSV file of a split by the words of its name; None where neither it nor a photograph is there."""
    for names, source in sorted(part.files.items()):
        file = names[-1].lower()
        if names[0].lower().startswith("2.") and file.endswith(".csv") and kind in file and _split_of(file) == split:
            return source
    if needed:
        folder = f"{layout.PARTS[part.letter]}/{layout.TRUTHS[part.letter]}"
        raise UserError(f"{part.root}: its file '{folder}/{official}' is missing; copy it from the official release")
    return None


def _rows(source: Source, wanted: dict[str, str]) -> dict[str, dict[str, str]]:
    """id -> column -> cell. Columns go by their letters alone; nameless columns and blank rows are passed over."""
    import pandas  # late: only a release's CSV files need it, and it takes half a second

    try:
        text = source.read().decode("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        width = max(line.count(",") for line in text.splitlines()) + 1  # rows may be longer than the header
        table = pandas.read_csv(
            io.StringIO(text), header=None, names=range(width), dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except (ValueError, pandas.errors.ParserError) as error:  # a wrong encoding is a ValueError
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


def _match(source: Source | None, rows: dict, photographs: dict[str, Source]) -> None:
    """Each row has a photograph and each photograph a row."""
    if lost := [name for name in rows if name not in photographs]:
        raise UserError(f"{source}: row {lost[0]} has no photograph{_more(lost)}; add the file or take the row away")
    if lost := [name for name in photographs if name not in rows]:
        raise UserError(f"{photographs[lost[0]]}: no row in {source}{_more(lost)}; add the row or take the file away")


def _more(lost: list[str]) -> str:
    return f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""


def _label(source: Source, name: str, column: str, cell: str, allowed) -> int:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if value not in allowed:
        raise UserError(f"{source}: {name} has '{column}' {cell!r}; it must be {allowed[0]} to {allowed[-1]}")
    return int(value)


def _pixel(source: Source, name: str, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UserError(f"{source}: {name} has '{column}' {cell!r}; it must be a number of pixels from 0")
    return value
