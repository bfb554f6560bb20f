"""The manifest of a prepared release: what its caches and its TFDS dataset are made from, and where it lies.

    <data_dir>/idrid_jax/latest                         the fingerprint of the release prepared last
    <data_dir>/idrid_jax/<fingerprint>/release.json     Manifest
                                       idrid/<config>/<version>/     the TFDS dataset
                                       cache/                        see `cache`

`prepare` writes it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.data.layout import SPLITS
from idrid_jax.data.source import Source
from idrid_jax.errors import UserError

MANIFEST = "release.json"
TFDS_VERSION = "1.0.0"  # Builder.VERSION, for those who do not import TFDS
AGAIN = "run idrid-jax prepare --release PATH again"


@dataclass(frozen=True)
class Photograph:
    """A graded photograph of a prepared release: id "train/IDRiD_001", labels, where its bytes lie and their sha256."""

    id: str
    grade: int
    edema: int
    sha256: str
    source: Source


@dataclass(frozen=True)
class Manifest:
    """A prepared release, as `prepare` wrote it down."""

    folder: Path  # <data_dir>/idrid_jax/<fingerprint>
    release: Path  # where the release was read from
    name: str  # the name of its root folder, so that a user sees which one it is
    fingerprint: str  # of what is left after the audit
    source: str  # the fingerprint of the release as read
    options: dict[str, bool]  # of the audit
    counts: dict[str, dict]  # {"grading": {"train": [a count for each grade], ...}, "segmentation": ..., ...}
    report: str  # the audit's text for the user
    exclusions: tuple[str, ...]  # what was left out, and why
    groups: tuple[tuple[str, ...], ...]  # ids of the same photograph, for folds
    grading: dict[str, tuple[Photograph, ...]]  # by split, sorted by id
    tfds: bool  # whether the TFDS dataset was built


def default_data_dir() -> Path:
    """$TFDS_DATA_DIR, else ~/tensorflow_datasets: where TFDS itself would look."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(data_dir: Path | str | None = None, release: str = "") -> Manifest:
    """The release prepared last under `data_dir` (None: the default one), or the one that `release` names.

    release: the beginning of a fingerprint, or the path that was prepared; of several prepared from one path (it has
    changed since, or with other options) the last is taken.

    Raises UserError where nothing (or nothing of that name, or more than one) was prepared, or where it has vanished.
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
            raise UserError(f"release {release!r} begins {len(found)} fingerprints under {root}; give more of it")
        return read_manifest(found[0])
    path = Path(release).expanduser().resolve()
    all_manifests = list(readable_manifests(root))
    same = [manifest for manifest in all_manifests if manifest.release == path]
    if not same:
        known = ", ".join(f"{manifest.fingerprint[:8]} ({manifest.release})" for manifest in all_manifests)
        readable = {manifest.folder for manifest in all_manifests}
        damaged = ", ".join(str(folder) for folder in folders if folder not in readable)
        found = (known or "none") + (f"; damaged: {damaged}: if it is that, {AGAIN}" if damaged else "")
        raise UserError(f"release {release!r} has not been prepared under {data_dir}; there are: {found}")
    return max(same, key=lambda manifest: (manifest.folder == latest, (manifest.folder / MANIFEST).stat().st_mtime))


def readable_manifests(root: Path) -> Iterator[Manifest]:
    """Those under `root`, <data_dir>/idrid_jax: a damaged one hides no other, and `prepare` writes it again."""
    for path in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(UserError):
            yield read_manifest(path.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises UserError where it is missing or damaged."""
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        grading = {
            split: tuple(
                Photograph(name, grade, edema, sha256, Source(Path(path), member))
                for name, grade, edema, sha256, path, member in fields["grading"][split]
            )
            for split in SPLITS
        }
        lists = {"exclusions": tuple(fields["exclusions"]), "groups": tuple(tuple(group) for group in fields["groups"])}
        return Manifest(**fields | lists | {"folder": folder, "release": Path(fields["release"]), "grading": grading})
    except FileNotFoundError:
        raise UserError(f"{folder}: the prepared release is gone; {AGAIN}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: cannot be read ({error}); {AGAIN}") from error


def write_manifest(manifest: Manifest) -> None:
    """Writes `release.json`, in one step. Raises UserError where it cannot be written."""
    fields = dict(vars(manifest))
    del fields["folder"]
    fields["release"] = str(manifest.release)
    fields["grading"] = {
        split: [[p.id, p.grade, p.edema, p.sha256, str(p.source.path), p.source.member] for p in photographs]
        for split, photographs in manifest.grading.items()
    }
    atomic.write_text(manifest.folder / MANIFEST, json.dumps(fields, indent=1) + "\n")


def tfds_path(config: str) -> Path:
    """Where, below a manifest's folder, TFDS keeps a config of the dataset."""
    return Path("idrid", config, TFDS_VERSION)
