"""The manifest of a prepared release: its photographs, labels, duplicates and exclusions, and where it lies.

    <data_dir>/idrid_jax/latest                         the fingerprint of the release prepared most recently
    <data_dir>/idrid_jax/<fingerprint>/release.json     Manifest
                                       idrid/<config>/<version>/     the TFDS dataset
                                       cache/                        see `cache`

`prepare` writes it; caches and the TFDS dataset are made from it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.data.layout import SPLITS
from idrid_jax.data.release_files import Source
from idrid_jax.errors import UserError

MANIFEST = "release.json"
TFDS_VERSION = "1.0.0"  # equal to Builder.VERSION, which needs TFDS to be imported
PREPARE_AGAIN = "run idrid-jax prepare --release PATH again"


@dataclass(frozen=True)
class Photograph:
    """A graded photograph of a prepared release: an id such as "train/IDRiD_001", labels, file, and its sha256."""

    id: str
    grade: int
    edema: int
    sha256: str
    source: Source


@dataclass(frozen=True)
class Manifest:
    """A prepared release."""

    folder: Path  # <data_dir>/idrid_jax/<fingerprint>
    release: Path  # where the release was read from
    name: str  # the name of the release's root folder, for people
    fingerprint: str  # of the release after the audit's exclusions
    source_fingerprint: str  # of the release as read
    options: dict[str, bool]  # of the audit
    counts: dict[str, dict]  # {"grading": {"train": [a count for each grade], ...}, "segmentation": ..., ...}
    report: str  # the audit's report
    exclusions: tuple[str, ...]  # what the audit excluded, and why
    duplicate_groups: tuple[tuple[str, ...], ...]  # ids of copies of one photograph, which folds keep together
    grading: dict[str, tuple[Photograph, ...]]  # by split, sorted by id
    tfds: bool  # whether the TFDS dataset was built


def default_data_dir() -> Path:
    """Return $TFDS_DATA_DIR, or ~/tensorflow_datasets, as TFDS itself does."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(data_dir: Path | str | None = None, release: str = "") -> Manifest:
    """Return the prepared release under `data_dir` that `release` names, or if it is "", the most recent one.

    `data_dir` is by default `default_data_dir()`. `release` is the beginning of a fingerprint, or the path that was
    prepared; if that was prepared several times (changed, or with other options), the last one is returned.

    Raises UserError if no release, none of that name, or more than one was prepared, or its folder is gone.
    """
    data_dir = Path(data_dir).expanduser() if data_dir else default_data_dir()
    root = data_dir / "idrid_jax"
    folders = [path.parent for path in sorted(root.glob(f"[!.]*/{MANIFEST}"))]
    noted = (root / "latest").read_text().strip() if (root / "latest").is_file() else ""
    if not folders and not noted or not noted and not release:
        raise UserError(f"no release has been prepared under {data_dir}: run idrid-jax prepare --release PATH first")
    latest = root / noted
    if not release:
        return read_manifest(latest)
    if found := [folder for folder in folders if folder.name.startswith(release)]:
        if len(found) > 1:
            raise UserError(f"release {release!r} matches {len(found)} fingerprints under {root}; give more digits")
        return read_manifest(found[0])
    path = Path(release).expanduser().resolve()
    all_manifests = list(readable_manifests(root))
    same = [manifest for manifest in all_manifests if manifest.release == path]
    if not same:
        known = ", ".join(f"{manifest.fingerprint[:8]} ({manifest.release})" for manifest in all_manifests)
        readable = {manifest.folder for manifest in all_manifests}
        damaged = ", ".join(str(folder) for folder in folders if folder not in readable)
        found = (known or "none") + (f"; damaged: {damaged}: if it is one of these, {PREPARE_AGAIN}" if damaged else "")
        raise UserError(f"release {release!r} has not been prepared under {data_dir}; prepared are: {found}")
    return max(same, key=lambda manifest: (manifest.folder == latest, (manifest.folder / MANIFEST).stat().st_mtime))


def readable_manifests(root: Path) -> Iterator[Manifest]:
    """Yield the manifests under `root`, <data_dir>/idrid_jax, without damaged ones, which `prepare` writes again."""
    for path in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(UserError):
            yield read_manifest(path.parent)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in `folder`. Raises UserError if it is missing or damaged."""
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        grading = {
            split: tuple(
                Photograph(name, grade, edema, sha256, Source(Path(path), member))
                for name, grade, edema, sha256, path, member in fields["grading"][split]
            )
            for split in SPLITS
        }
        converted = {
            "folder": folder,
            "release": Path(fields["release"]),
            "exclusions": tuple(fields["exclusions"]),
            "duplicate_groups": tuple(map(tuple, fields["duplicate_groups"])),
            "grading": grading,
        }
        return Manifest(**fields | converted)
    except FileNotFoundError:
        raise UserError(f"{folder}: the prepared release is gone; {PREPARE_AGAIN}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: cannot be read ({error}); {PREPARE_AGAIN}") from error


def write_manifest(manifest: Manifest) -> None:
    """Write `release.json` in one step. Raises UserError if it cannot be written."""
    fields = dict(vars(manifest))
    del fields["folder"]
    fields["release"] = str(manifest.release)
    fields["grading"] = {
        split: [[p.id, p.grade, p.edema, p.sha256, str(p.source.path), p.source.member] for p in photographs]
        for split, photographs in manifest.grading.items()
    }
    atomic.write_text(manifest.folder / MANIFEST, json.dumps(fields, indent=1) + "\n")


def tfds_path(config: str) -> Path:
    """Return where TFDS stores a config of the dataset, relative to the manifest's folder."""
    return Path("idrid", config, TFDS_VERSION)
