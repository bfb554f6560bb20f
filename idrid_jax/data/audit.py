"""Photographs that are in a release twice: found by their content, and what training has to leave out because of them.

IDRiD holds byte-identical photographs with contradicting grades, one of them on both sides of the split, and its part A
overlaps its part B. Nothing is listed here by file name: exact copies are found by the sha256 of the file, and others
by the correlation of what is fine in them (vessels, lesions), which survives another compression, size or exposure.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from idrid_jax.data.layout import GRADES, LESIONS, SPLITS
from idrid_jax.data.masks import check_size, open_image
from idrid_jax.data.preprocess import decode
from idrid_jax.data.release import Graded, Record, Release, Segmented, digest, part_of
from idrid_jax.data.source import Source

# Correlation above which two photographs are the same one. Measured on the 597 photographs of A and B at 1072x712: 68
# pairs are copies at the same exposure, 0.968 and above; one is a copy at another exposure (B train 013 and 397),
# 0.623; two are other shots of the same eye, 0.449 and 0.386; all 177,835 others lie at 0.233 and below. So the margin
# is 0.17 between the lowest true and the highest false, and the threshold is in its middle.
SAME = 0.535
WIDTH, HEIGHT = 192, 128  # of the view that is compared; finer ones lose the copy with another exposure
SIGMA = 1.5  # of the Gaussian that parts coarse from fine, in pixels of that view
RETINA = 0.15  # of the 95th percentile: what is darker is the black around the retina


@dataclass(frozen=True)
class Group:
    """Records of one part that show one photograph. correlation: the lowest of the links found; 1 for exact copies."""

    records: tuple[Record, ...]
    exact: bool
    correlation: float

    def __str__(self) -> str:
        how = "identical files" if self.exact else f"the same photograph, correlation {self.correlation:.2f}"
        return f"{part_of(self.records[0])} {' = '.join(map(_named, self.records))}: {how}"


@dataclass(frozen=True)
class Exclusion:
    """A record that was left out, and why (the other records and grades concerned, in words)."""

    record: Record
    reason: str

    def __str__(self) -> str:
        return f"{part_of(self.record)} {_named(self.record)}: {self.reason}"


@dataclass(frozen=True)
class Audit:
    """What was found in a release. release: as read. kept: without the exclusions. groups: of the release as read."""

    release: Release
    kept: Release
    groups: tuple[Group, ...]
    exclusions: tuple[Exclusion, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """What `prepare` prints: counts by split and grade, masks, what was left out and why, what was noticed."""
        lines = [f"release {self.release.root}"]
        if self.release.grading:
            rows = [["part B, photographs by grade", *GRADES, "all"]]
            for split in SPLITS:
                rows.append([f"  {split}", *_by_grade(self.release, split)])
                if any(type(x.record) is Graded and x.record.split == split for x in self.exclusions):
                    rows.append([f"  {split}, kept", *_by_grade(self.kept, split)])
            widths = [max(map(len, column)) for column in zip(*rows)]
            lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        for split in SPLITS if self.release.segmentation else ():
            records = [record for record in self.release.segmentation if record.split == split]
            masks = ", ".join(f"{lesion} {sum(lesion in record.masks for record in records)}" for lesion in LESIONS)
            lines.append(f"part A, {split}: {len(records)} photographs, with masks: {masks}")
        for split in SPLITS if self.release.localization else ():
            located = sum(record.split == split for record in self.release.localization)
            lines.append(f"part C, {split}: {located} photographs with the centres of disc and fovea")
        for title, found in (("left out", self.exclusions), ("noticed and kept", self.notes)):
            lines.append(f"{title}: {len(found) or 'nothing'}")
            lines += [f"  {one}" for one in found]
        return "\n".join(lines)


def audit(release: Release, *, keep_leaks: bool = False, keep_contradictions: bool = False) -> tuple[Release, Audit]:
    """Looks at every photograph once and returns the release without what training must not see, and what was found.

    Left out: in each part, the training copies of a photograph that is in its test split (kept by keep_leaks); in part
    B, all training copies of a photograph whose grades contradict each other (kept by keep_contradictions). Copies that
    agree and contradictions in oedema risk alone are kept and noted. The test split is never touched. On IDRiD the
    training split goes from 413 to 406: one leak, two pairs of identical files and one pair of near copies.

    Near copies are looked for among photographs of at least 128 pixels a side: smaller ones have not the detail that
    tells two eyes apart. Reads, hashes and decodes in threads, at reduced scale where the file allows: the 597
    photographs of A and B take about 4 s at 1072x712 on two cores. The hashes are kept for `Release.fingerprint`.

    Raises UserError (one line): a photograph that is truncated, no image or a decompression bomb; a mask of another
    size than its photograph.
    """
    looks = _look(release, (release.grading, release.segmentation, release.localization))
    groups, exclusions, notes = [], [], []
    for records in (release.grading, release.segmentation, release.localization):
        groups += _groups(records, release, looks)
    for group in groups:
        _judge(group, keep_leaks, keep_contradictions, exclusions, notes)
    notes += _outside(release, looks)
    gone = {(type(one.record), one.record.split, one.record.id) for one in exclusions}
    parts = {
        name: tuple(one for one in getattr(release, name) if (type(one), one.split, one.id) not in gone)
        for name in ("grading", "segmentation", "localization")
    }
    kept = replace(release, **parts)
    return kept, Audit(release, kept, tuple(groups), tuple(exclusions), tuple(notes))


def overlap(release: Release) -> pandas.DataFrame:
    """Photographs of part A that are in part B as well: one row for each, with its best match in B.

    Columns: a_split, a_id, b_split, b_id, correlation. Of identical files in B the first is named. On IDRiD: 60 of the
    81, of which 15 test photographs of A are in B's training split and 3 training photographs of A in B's test split: a
    model trained on one part must not be tested on these in the other.
    """
    columns = ["a_split", "a_id", "b_split", "b_id", "correlation"]
    a, b = release.segmentation, release.grading
    looks = _look(release, (b, a))
    rows = []
    for i, j, correlation in _links(_views(a, release, looks), _views(b, release, looks)):
        rows.append((a[i].split, a[i].id, b[j].split, b[j].id, round(float(correlation), 4)))
    table = pandas.DataFrame(rows, columns=columns).sort_values("correlation", ascending=False, kind="stable")
    order = {(record.split, record.id): i for i, record in enumerate(a)}
    table = table.drop_duplicates(["a_split", "a_id"])
    return table.iloc[np.argsort([order[key] for key in zip(table.a_split, table.a_id)])].reset_index(drop=True)


@dataclass(frozen=True)
class _Look:
    """What remains of a decoded photograph: its (width, height) and its fine structure, or None if too small."""

    size: tuple[int, int]
    view: np.ndarray | None


def _look(release: Release, parts) -> dict[str, _Look]:
    """sha256 -> what was seen. Photographs of C are files of B: a file whose hash is known is not decoded again."""
    looks: dict[str, _Look] = {}

    def hashed(source: Source, data: bytes) -> str:
        if source not in release.digests:  # else the fingerprint was asked for before
            release.digests[source] = digest(data)
        return release.digests[source]

    def one(record: Record) -> None:
        data = record.image.read()
        key = hashed(record.image, data)
        if key not in looks:
            view = _view(data, record.image)
            looks[key] = _Look(open_image(data, record.image).size, view)
        for source in record.masks.values() if isinstance(record, Segmented) else ():
            mask = source.read()
            hashed(source, mask)
            with open_image(mask, source) as image:
                check_size(source, image.size, looks[key].size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for records in parts:
            for _ in pool.map(one, records):
                pass
    return looks


def _view(data: bytes, source: Source) -> np.ndarray | None:
    """float32 [HEIGHT * WIDTH], mean 0, norm 1: the photograph less its blurred self, in the retina and off its rim."""
    image = decode(data, str(source), least=HEIGHT)
    if min(image.shape[:2]) < HEIGHT:
        return None
    small = Image.fromarray(image).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    # The rim is the strongest edge of all, and every photograph of one camera has the same.
    retina = grey > RETINA * np.percentile(grey, 95)
    retina = ndimage.binary_erosion(retina, iterations=int(2 * SIGMA) + 1, border_value=1)
    fine = np.where(retina, grey - ndimage.gaussian_filter(grey, SIGMA), 0)
    fine = np.where(retina, fine - fine.sum() / max(retina.sum(), 1), 0).ravel()
    norm = np.linalg.norm(fine)
    return (fine / norm).astype(np.float32) if norm > 1 else np.zeros(fine.size, np.float32)


def _views(records, release: Release, looks: dict[str, _Look]) -> tuple[list[str], np.ndarray]:
    keys = [release.digests[record.image] for record in records]
    nothing = np.zeros(HEIGHT * WIDTH, np.float32)
    views = [nothing if looks[key].view is None else looks[key].view for key in keys]
    return keys, np.stack(views) if views else np.zeros((0, HEIGHT * WIDTH), np.float32)


def _links(first, second) -> list[tuple[int, int, float]]:
    """(i, j, correlation) of all that are the same; 1 for identical files. In blocks, to bound the memory."""
    (a_keys, a), (b_keys, b) = first, second
    places: dict[str, list[int]] = {}
    for j, key in enumerate(b_keys):
        places.setdefault(key, []).append(j)
    links = {(i, j): 1.0 for i, key in enumerate(a_keys) for j in places.get(key, ())}
    for start in range(0, len(a), 256):
        block = a[start : start + 256] @ b.T
        for i, j in np.argwhere(block > SAME):
            links.setdefault((int(start + i), int(j)), float(block[i, j]))
    return [(i, j, correlation) for (i, j), correlation in sorted(links.items())]


def _groups(records, release: Release, looks: dict[str, _Look]) -> list[Group]:
    views = _views(records, release, looks)
    links = [link for link in _links(views, views) if link[0] < link[1]]
    if not links:
        return []
    i, j, correlations = map(np.array, zip(*links))
    graph = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(len(records), len(records)))
    _, labels = csgraph.connected_components(graph, directed=False)
    groups = []
    for label in dict.fromkeys(labels[i].tolist()):
        members = np.flatnonzero(labels == label)
        exact = len({views[0][k] for k in members}) == 1
        correlation = 1.0 if exact else float(correlations[labels[i] == label].min())
        groups.append(Group(tuple(records[k] for k in members), exact, correlation))
    return groups


def _judge(group: Group, keep_leaks: bool, keep_contradictions: bool, exclusions: list, notes: list) -> None:
    """The rules of `audit` on one group."""
    train = [record for record in group.records if record.split == "train"]
    test = [record for record in group.records if record.split == "test"]
    how = "identical to" if group.exact else "the same photograph as"
    graded = type(group.records[0]) is Graded
    contradicting = graded and len({record.grade for record in train}) > 1
    if train and test and not keep_leaks:
        reason = f"{how} {', '.join(map(_named, test))} of the test split"
        exclusions += [Exclusion(record, reason) for record in train]
    elif contradicting and not keep_contradictions:
        for record in train:
            others = [_named(other) for other in train if other is not record]
            exclusions.append(Exclusion(record, f"{how} {', '.join(others)}, with another grade"))
    else:
        remarks = []
        if graded and len({record.grade for record in group.records}) > 1:
            remarks.append("grades contradict")
        risks = {record.edema for record in group.records} if graded else set()
        if len(risks) > 1:
            remarks.append("oedema risks contradict: " + ", ".join(str(record.edema) for record in group.records))
        if train and test:
            remarks.append("in both splits")
        notes.append("; ".join([str(group), *remarks]))


def _outside(release: Release, looks: dict[str, _Look]) -> list[str]:
    """Centres beyond their photograph: the official ones count pixels of 4288x2848, whatever the images have now."""
    notes = []
    for record in release.localization:
        width, height = looks[release.digests[record.image]].size
        for name, (x, y) in (("disc", record.disc), ("fovea", record.fovea)):
            if not (x <= width and y <= height):
                notes.append(f"C {_named(record)}: {name} at ({x:g}, {y:g}) lies outside its {width}x{height} pixels")
    return notes


def _named(record: Record) -> str:
    grade = f" (grade {record.grade})" if isinstance(record, Graded) else ""
    return f"{record.split}/{record.id}{grade}"


def _by_grade(release: Release, split: str) -> list[str]:
    counts = Counter(record.grade for record in release.grading if record.split == split)
    return [str(counts[grade]) for grade in range(len(GRADES))] + [str(counts.total())]
