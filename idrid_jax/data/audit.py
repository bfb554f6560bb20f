"""Audit a release: exclude training photographs that leak into the test split or have contradicting grades.

IDRiD contains identical photographs with contradicting grades, one of them in both splits, and its part A overlaps its
part B. `duplicates` finds them by content; here are the rules of what to exclude because of them, and the report.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas

from idrid_jax.data.duplicates import (
    DuplicateGroup,
    Fingerprint,
    describe_record,
    find_groups,
    find_pairs,
    fingerprint_photographs,
)
from idrid_jax.data.layout import GRADES, LESIONS, SPLITS
from idrid_jax.data.release import Graded, Record, Release, part_of

PARTS = ("grading", "segmentation", "localization")


@dataclass(frozen=True)
class Exclusion:
    """An excluded record, and the reason in words, which names the other records and grades."""

    record: Record
    reason: str

    def __str__(self) -> str:
        return f"{part_of(self.record)} {describe_record(self.record)}: {self.reason}"


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
      release: the release as read.
      remaining: the release without the exclusions.
      groups: duplicates in the release as read.
      exclusions: what was excluded, and why.
      notes: what was noticed and not excluded.
    """

    release: Release
    remaining: Release
    groups: tuple[DuplicateGroup, ...]
    exclusions: tuple[Exclusion, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the report that `prepare` prints: counts by split and grade, masks, exclusions and notes."""
        lines = [f"release {self.release.root}", *self._grading_table()]
        for split in SPLITS if self.release.segmentation else ():
            records = [record for record in self.release.segmentation if record.split == split]
            masks = ", ".join(f"{lesion} {sum(lesion in record.masks for record in records)}" for lesion in LESIONS)
            lines.append(f"part A, {split}: {len(records)} photographs, with masks: {masks}")
        for split in SPLITS if self.release.localization else ():
            located = sum(record.split == split for record in self.release.localization)
            lines.append(f"part C, {split}: {located} photographs with the centers of optic disc and fovea")
        for title, found in (("excluded", self.exclusions), ("noticed, not excluded", self.notes)):
            lines.append(f"{title}: {len(found) or 'nothing'}")
            lines += [f"  {one}" for one in found]
        return "\n".join(lines)

    def _grading_table(self) -> list[str]:
        if not self.release.grading:
            return []
        rows = [["part B, photographs by grade", *GRADES, "all"]]
        for split in SPLITS:
            rows.append([f"  {split}", *_counts_by_grade(self.release, split)])
            if any(type(x.record) is Graded and x.record.split == split for x in self.exclusions):
                rows.append([f"  {split}, after exclusions", *_counts_by_grade(self.remaining, split)])
        widths = [max(map(len, column)) for column in zip(*rows)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def audit(release: Release, *, keep_leaks: bool = False, keep_contradictions: bool = False) -> tuple[Release, Audit]:
    """Return the release without what training must not see, and what was found.

    Excluded are, in each part, the training copies of a photograph that is in its test split (unless keep_leaks), and
    in part B, all training copies of a photograph whose grades contradict each other (unless keep_contradictions).
    Copies with the same grade, and those that differ only in the risk of macular edema, are noted and remain. The test
    split does not change. On IDRiD, 406 of 413 training photographs remain: excluded are one leak, two pairs of
    identical files and one pair of near-duplicates.

    Near-duplicates are searched among photographs of at least 128 pixels a side: smaller ones have too little detail to
    tell two eyes apart. Photographs are read, hashed and decoded in threads, reduced if the file format allows it: the
    597 photographs of parts A and B take about 4 s at 1072x712 on two cores. `Release.fingerprint` reuses the hashes.

    Raises UserError for a photograph that is truncated, not an image or a decompression bomb, and for a mask of another
    size than its photograph.
    """
    parts = [getattr(release, name) for name in PARTS]
    fingerprints = fingerprint_photographs(release, parts)
    groups = [group for records in parts for group in find_groups(records, release, fingerprints)]
    exclusions, notes = [], []
    for group in groups:
        _apply_rules(group, keep_leaks, keep_contradictions, exclusions, notes)
    notes += _centers_outside(release, fingerprints)
    excluded = {(type(one.record), one.record.split, one.record.id) for one in exclusions}
    remaining = replace(
        release,
        **{
            name: tuple(one for one in records if (type(one), one.split, one.id) not in excluded)
            for name, records in zip(PARTS, parts)
        },
    )
    return remaining, Audit(release, remaining, tuple(groups), tuple(exclusions), tuple(notes))


def overlap(release: Release) -> pandas.DataFrame:
    """Return the photographs of part A that are also in part B: one row for each, with its best match in B.

    The columns are a_split, a_id, b_split, b_id and correlation. Of identical files in B the first is named. On IDRiD
    these are 60 of the 81: 15 test photographs of A are in B's training split, and 3 training photographs of A in B's
    test split. A model trained on one part must not be tested on these in the other.
    """
    columns = ["a_split", "a_id", "b_split", "b_id", "correlation"]
    a, b = release.segmentation, release.grading
    fingerprints = fingerprint_photographs(release, (b, a))
    rows = []
    for i, j, correlation in find_pairs(a, b, release, fingerprints):
        rows.append((a[i].split, a[i].id, b[j].split, b[j].id, round(float(correlation), 4)))
    table = pandas.DataFrame(rows, columns=columns).sort_values("correlation", ascending=False, kind="stable")
    order = {(record.split, record.id): i for i, record in enumerate(a)}
    table = table.drop_duplicates(["a_split", "a_id"])
    return table.iloc[np.argsort([order[key] for key in zip(table.a_split, table.a_id)])].reset_index(drop=True)


def _apply_rules(
    group: DuplicateGroup, keep_leaks: bool, keep_contradictions: bool, exclusions: list, notes: list
) -> None:
    """Add what the rules of `audit` say about one group to `exclusions` or `notes`."""
    train = [record for record in group.records if record.split == "train"]
    test = [record for record in group.records if record.split == "test"]
    how = "identical to" if group.is_exact else "the same photograph as"
    graded = type(group.records[0]) is Graded
    contradicting = graded and len({record.grade for record in train}) > 1
    if train and test and not keep_leaks:
        reason = f"{how} {', '.join(map(describe_record, test))} of the test split"
        exclusions += [Exclusion(record, reason) for record in train]
    elif contradicting and not keep_contradictions:
        for record in train:
            others = [describe_record(other) for other in train if other is not record]
            exclusions.append(Exclusion(record, f"{how} {', '.join(others)}, with another grade"))
    else:
        remarks = []
        if graded and len({record.grade for record in group.records}) > 1:
            remarks.append("grades contradict")
        risks = {record.edema for record in group.records} if graded else set()
        if len(risks) > 1:
            remarks.append("edema risks contradict: " + ", ".join(str(record.edema) for record in group.records))
        if train and test:
            remarks.append("in both splits")
        notes.append("; ".join([str(group), *remarks]))


def _centers_outside(release: Release, fingerprints: dict[str, Fingerprint]) -> list[str]:
    """Note centers outside of their photograph: the official ones count pixels of 4288x2848, even if the images have
    been resized."""
    notes = []
    for record in release.localization:
        width, height = fingerprints[release.digests[record.image]].size
        for name, (x, y) in (("disc", record.disc), ("fovea", record.fovea)):
            if not (x <= width and y <= height):
                where = f"({x:g}, {y:g}) lies outside its {width}x{height} pixels"
                notes.append(f"C {describe_record(record)}: {name} at {where}")
    return notes


def _counts_by_grade(release: Release, split: str) -> list[str]:
    counts = Counter(record.grade for record in release.grading if record.split == split)
    return [str(counts[grade]) for grade in range(len(GRADES))] + [str(counts.total())]
