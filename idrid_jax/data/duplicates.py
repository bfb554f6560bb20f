"""Find photographs that a release contains more than once: identical files, and near-duplicates.

Identical files have the same sha256. Near-duplicates, the same photograph at another compression, size or exposure,
are found by high-pass correlation: each photograph is reduced to 192 x 128 grey pixels, a Gaussian blur is subtracted,
which leaves fine structure (vessels, lesions), and two photographs whose fine structures correlate above a threshold
are the same one. No file name is consulted.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from idrid_jax.data.masks import check_mask_size, open_image
from idrid_jax.data.preprocess import decode, retina_mask
from idrid_jax.data.release import Graded, Record, Release, Segmented, digest, part_of
from idrid_jax.data.release_files import Source

# Correlation above which two photographs are the same one. Of the 597 photographs of parts A and B at 1072x712, 68
# pairs are copies at the same exposure, 0.968 and above; one is a copy at another exposure (B train 013 and 397),
# 0.623; two are other photographs of the same eye, 0.449 and 0.386; all 177,835 others are at 0.233 and below. The
# threshold is in the middle between the lowest true and the highest false one, 0.17 apart.
MIN_CORRELATION = 0.535
WIDTH, HEIGHT = 192, 128  # pixels that are compared; with more, the copy at another exposure is not found
SIGMA = 1.5  # standard deviation of the blur that is subtracted, in those pixels


@dataclass(frozen=True)
class DuplicateGroup:
    """Records of one part that show the same photograph.

    `is_exact` says that all files are identical. `correlation` is the lowest among the pairs found; 1 if exact.
    """

    records: tuple[Record, ...]
    is_exact: bool
    correlation: float

    def __str__(self) -> str:
        how = "identical files" if self.is_exact else f"the same photograph, correlation {self.correlation:.2f}"
        return f"{part_of(self.records[0])} {' = '.join(map(describe_record, self.records))}: {how}"


@dataclass(frozen=True)
class Fingerprint:
    """What comparisons need of a photograph: (width, height) in pixels, and its fine structure, None if it is small."""

    size: tuple[int, int]
    fine: np.ndarray | None


def describe_record(record: Record) -> str:
    """Return a record's split and id, and its grade if it has one: "train/IDRiD_001 (grade 3)"."""
    grade = f" (grade {record.grade})" if isinstance(record, Graded) else ""
    return f"{record.split}/{record.id}{grade}"


def fingerprint_photographs(release: Release, parts: Iterable[Sequence[Record]]) -> dict[str, Fingerprint]:
    """Read and decode the photographs of `parts` in threads: sha256 of the file -> fingerprint.

    Identical files are decoded once. Also reads the masks, checks their sizes, and stores the sha256 of all files in
    `release.digests`. Raises UserError for a photograph or mask that is damaged, and a mask of another size.
    """
    fingerprints: dict[str, Fingerprint] = {}

    def store_digest(source: Source, data: bytes) -> str:
        if source not in release.digests:
            release.digests[source] = digest(data)
        return release.digests[source]

    def read(record: Record) -> None:
        data = record.image.read()
        key = store_digest(record.image, data)
        if key not in fingerprints:
            fine = _fine_structure(data, record.image)
            fingerprints[key] = Fingerprint(open_image(data, record.image).size, fine)
        for source in record.masks.values() if isinstance(record, Segmented) else ():
            mask = source.read()
            store_digest(source, mask)
            with open_image(mask, source) as image:
                check_mask_size(source, image.size, fingerprints[key].size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for records in parts:  # one part after the other: photographs of part C are files of part B
            for _ in pool.map(read, records):
                pass
    return fingerprints


def find_pairs(
    first: Sequence[Record], second: Sequence[Record], release: Release, fingerprints: dict[str, Fingerprint]
) -> list[tuple[int, int, float]]:
    """Return (i, j, correlation) for each first[i] and second[j] that show one photograph; 1 for identical files."""
    (first_keys, first_fine), (second_keys, second_fine) = (
        _stack(records, release, fingerprints) for records in (first, second)
    )
    places: dict[str, list[int]] = {}
    for j, key in enumerate(second_keys):
        places.setdefault(key, []).append(j)
    pairs = {(i, j): 1.0 for i, key in enumerate(first_keys) for j in places.get(key, ())}
    for start in range(0, len(first), 256):  # in blocks, to bound the memory
        block = first_fine[start : start + 256] @ second_fine.T
        for i, j in np.argwhere(block > MIN_CORRELATION):
            pairs.setdefault((int(start + i), int(j)), float(block[i, j]))
    return [(i, j, correlation) for (i, j), correlation in sorted(pairs.items())]


def find_groups(
    records: Sequence[Record], release: Release, fingerprints: dict[str, Fingerprint]
) -> list[DuplicateGroup]:
    """Group the records of one part that are connected by pairs of the same photograph."""
    pairs = [pair for pair in find_pairs(records, records, release, fingerprints) if pair[0] < pair[1]]
    if not pairs:
        return []
    i, j, correlations = map(np.array, zip(*pairs))
    graph = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(len(records), len(records)))
    _, labels = csgraph.connected_components(graph, directed=False)
    groups = []
    for label in dict.fromkeys(labels[i].tolist()):
        members = [records[k] for k in np.flatnonzero(labels == label)]
        is_exact = len({release.digests[record.image] for record in members}) == 1
        correlation = 1.0 if is_exact else float(correlations[labels[i] == label].min())
        groups.append(DuplicateGroup(tuple(members), is_exact, correlation))
    return groups


def _fine_structure(data: bytes, source: Source) -> np.ndarray | None:
    """Return the high-pass filtered photograph, within the retina and away from its rim: float32 [HEIGHT * WIDTH] of
    mean 0 and norm 1, or 0 if it has no structure. None for a photograph that is smaller than HEIGHT."""
    image = decode(data, str(source), min_side=HEIGHT)
    if min(image.shape[:2]) < HEIGHT:
        return None
    small = Image.fromarray(image).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32)
    # The rim is the strongest edge of all, and the same in every photograph of one camera.
    retina = retina_mask(grey)
    retina = ndimage.binary_erosion(retina, iterations=int(2 * SIGMA) + 1, border_value=1)
    fine = np.where(retina, grey - ndimage.gaussian_filter(grey, SIGMA), 0)
    fine = np.where(retina, fine - fine.sum() / max(retina.sum(), 1), 0).ravel()
    norm = np.linalg.norm(fine)
    return (fine / norm).astype(np.float32) if norm > 1 else np.zeros(fine.size, np.float32)


def _stack(
    records: Sequence[Record], release: Release, fingerprints: dict[str, Fingerprint]
) -> tuple[list[str], np.ndarray]:
    """Return the sha256 and the fine structure, float32 [N, HEIGHT * WIDTH], of each record; 0 for small ones."""
    keys = [release.digests[record.image] for record in records]
    zeros = np.zeros(HEIGHT * WIDTH, np.float32)
    fine = [zeros if fingerprints[key].fine is None else fingerprints[key].fine for key in keys]
    return keys, np.stack(fine) if fine else np.zeros((0, HEIGHT * WIDTH), np.float32)
