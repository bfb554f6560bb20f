"""Read IDRiD as distributed: one record per photograph, with its labels and the place of its bytes.

No pixel is decoded here, so reading the official release takes well under a second. `ReleaseWriter` writes releases.
Source of the layout: Porwal et al., Data 2018, 3(3):25.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from idrid_jax.data import layout
from idrid_jax.data.layout import GRADES, LESIONS, SPLITS
from idrid_jax.data.masks import read_mask
from idrid_jax.data.release_files import Part, Source, find_parts
from idrid_jax.data.release_labels import parse_label, parse_pixel, read_labels, split_of
from idrid_jax.data.release_writer import ReleaseWriter
from idrid_jax.errors import UserError

__all__ = [
    "GRADES", "LESIONS", "SPLITS", "Graded", "Located", "Record", "Release", "ReleaseWriter", "Segmented", "Source",
    "read_mask", "read_release",
]  # fmt: skip


@dataclass(frozen=True)
class Graded:
    """A photograph of part B with its grade 0..4 and its risk of macular edema 0..2, or -1 for an empty cell."""

    split: str
    id: str
    image: Source
    grade: int
    edema: int


@dataclass(frozen=True)
class Segmented:
    """A photograph of part A with a mask for each lesion that it has; other lesions have no key."""

    split: str
    id: str
    image: Source
    masks: dict[str, Source] = field(hash=False)


@dataclass(frozen=True)
class Located:
    """A photograph of part C with the centers of optic disc and fovea, (x, y) in pixels of the photograph."""

    split: str
    id: str
    image: Source
    disc: tuple[float, float]
    fovea: tuple[float, float]


Record = Graded | Segmented | Located


@dataclass(frozen=True)
class Release:
    """The records of a release; a missing part is (). Ids repeat: a record is identified by (part, split, id)."""

    root: Path
    grading: tuple[Graded, ...] = ()
    segmentation: tuple[Segmented, ...] = ()
    localization: tuple[Located, ...] = ()
    digests: dict[Source, str] = field(default_factory=dict, compare=False, repr=False)  # sha256 of files read

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of all records, sorted: part, split, id, the sha256 of each file's bytes, labels.

        It does not depend on where the release lies or whether it is zipped, and changes with any byte, label or set of
        records. Files are read in threads, each once for this Release and those that `audit` derives from it.
        """
        sources = [source for record in self.records() for source in _sources(record)]
        missing = [source for source in dict.fromkeys(sources) if source not in self.digests]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.digests.update(zip(missing, pool.map(lambda source: digest(source.read()), missing)))
        lines = sorted(_line(record, self.digests) for record in self.records())
        return digest("\n".join(lines).encode())

    def records(self) -> tuple[Record, ...]:
        """Return all records of the parts B, A and C."""
        return self.grading + self.segmentation + self.localization


def digest(data: bytes) -> str:
    """Return the sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def part_of(record: Record) -> str:
    """Return the part of a record: "A", "B" or "C"."""
    return {Segmented: "A", Graded: "B", Located: "C"}[type(record)]


def read_release(path) -> Release:
    """Read the release at `path`.

    `path` is the folder with the zips or with the unpacked folders, one of them, or a folder around them, searched
    four folders deep; doubled folders and a literal %20 in names do not matter. Zips are read in place. If a zip and
    the folder unpacked from it lie side by side, the folder is read.

    Raises UserError for: no release, or several; the Kaggle mirror, whose grades differ; a damaged zip, or one with
    members outside of it; a missing or damaged CSV file; a photograph without a row, or a row without a photograph; an
    id that occurs twice; a grade outside 0..4, an edema risk outside 0..2, a coordinate that is not a number; a mask
    without a photograph.
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


def _photographs(part: Part) -> dict[str, dict[str, Source]]:
    """Return split -> id -> photograph."""
    found: dict[str, dict[str, Source]] = {split: {} for split in SPLITS}
    for names, source in sorted(part.files.items()):
        file = PurePosixPath(names[-1])
        if names[0].lower() != layout.IMAGES.lower() or file.suffix.lower() not in layout.PHOTO_SUFFIXES:
            continue
        split = split_of("/".join(names[1:-1]))
        if split is None:
            folders = " and ".join(layout.SPLIT_FOLDERS.values())
            raise UserError(f"{source}: a photograph outside {folders}; move it into one of them")
        if file.stem in found[split]:
            raise UserError(f"{source}: the id {file.stem} occurs twice, see {found[split][file.stem]}; keep one")
        found[split][file.stem] = source
    return found


def _read_grading(part: Part) -> tuple[Graded, ...]:
    records = []
    for split, photographs in _photographs(part).items():
        wanted = {"retinopathygrade": "Retinopathy grade"}
        source, rows = read_labels(part, "disease grading", split, layout.GRADING_CSV[split], wanted, photographs)
        for name, row in rows.items():
            grade = parse_label(source, name, "Retinopathy grade", row["retinopathygrade"], range(len(GRADES)))
            edema = row.get("riskofmacularedema", "")
            edema = parse_label(source, name, "Risk of macular edema", edema, layout.EDEMA) if edema else -1
            records.append(Graded(split, name, photographs[name], grade, edema))
    return tuple(records)


def _read_localization(part: Part) -> tuple[Located, ...]:
    records = []
    wanted = {"xcoordinate": "X- Coordinate", "ycoordinate": "Y - Coordinate"}
    for split, photographs in _photographs(part).items():
        centers = []
        for kind, names in (("od_center", layout.DISC_CSV), ("fovea_center", layout.FOVEA_CSV)):
            source, rows = read_labels(part, kind, split, names[split], wanted, photographs)
            centers.append({name: _center(source, name, row, wanted) for name, row in rows.items()})
        disc, fovea = centers
        records += [Located(split, name, photographs[name], disc[name], fovea[name]) for name in disc]
    return tuple(records)


def _center(source: Source, name: str, row: dict[str, str], columns: dict[str, str]) -> tuple[float, ...]:
    return tuple(parse_pixel(source, name, title, row[column]) for column, title in columns.items())


def _read_segmentation(part: Part) -> tuple[Segmented, ...]:
    photographs = _photographs(part)
    masks: dict[tuple[str, str], dict[str, Source]] = {}
    for names, source in sorted(part.files.items()):
        file = PurePosixPath(names[-1])
        if names[0].lower() != layout.TRUTHS["A"].lower() or file.suffix.lower() not in layout.MASK_SUFFIXES:
            continue
        split = split_of("/".join(names[1:-1]))
        name, _, lesion = file.stem.rpartition("_")
        if lesion not in LESIONS:
            raise UserError(f"{source}: a mask's name must end in one of _{', _'.join(LESIONS)}; rename it")
        if split is None or name not in photographs[split]:
            raise UserError(f"{source}: a mask without its photograph {name}; add the photograph or remove the mask")
        if lesion in masks.setdefault((split, name), {}):
            raise UserError(f"{source}: a second mask of {lesion} for {name}; keep one")
        masks[split, name][lesion] = source
    return tuple(
        Segmented(split, name, image, masks.get((split, name), {}))
        for split in SPLITS
        for name, image in photographs[split].items()
    )
