"""A release as downloaded -> read, audited, built as a TFDS dataset, written down. What `idrid-jax prepare` does."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.data.audit import Audit, audit
from idrid_jax.data.cache import (
    MANIFEST, Manifest, Photograph, default_data_dir, import_tfds, read_manifest, write_manifest,
)  # fmt: skip
from idrid_jax.data.release import GRADES, LESIONS, SPLITS, Graded, Release, read_release
from idrid_jax.errors import UserError

CONFIGS = ("grading", "segmentation", "localization")


def prepare(
    release_path: Path | str,
    data_dir: Path | str | None = None,
    *,
    tfds: bool = True,
    keep_leaks: bool = False,
    keep_contradictions: bool = False,
) -> tuple[Manifest, str]:
    """Prepares a release for training, under <data_dir>/idrid_jax/<fingerprint of what the audit leaves>.

    Every part that is present is built as a config of the TFDS dataset `idrid`; the manifest is written last, and
    `latest` points to it. What is there already is left alone; what a killed run left half-built is built again.

    Args:
      release_path: what `read_release` takes.
      data_dir: None: `default_data_dir()`.
      tfds: False, or TensorFlow missing: no TFDS dataset; caches are then filled straight from the release.
      keep_leaks, keep_contradictions: see `audit`.

    Returns:
      The manifest, and a text for the user: what was found, what was left out and why, where it lies.

    Raises:
      UserError: what `read_release` and `audit` refuse; a mask of another size; no graded, segmented or located
        photograph left; a folder that cannot be written, or a full disk.
    """
    data_dir = Path(data_dir).expanduser() if data_dir else default_data_dir()
    options = {"keep_leaks": keep_leaks, "keep_contradictions": keep_contradictions}
    release = read_release(release_path)
    kept, report = audit(release, **options)
    if not kept.records():
        raise UserError(f"{release_path}: the audit leaves no photograph; look at its reasons with keep_leaks and "
                        "keep_contradictions")
    fingerprint = kept.fingerprint()
    folder = data_dir / "idrid_jax" / fingerprint
    before = read_manifest(folder) if (folder / MANIFEST).is_file() else None

    lines = []
    if tfds and importlib.util.find_spec("tensorflow") is None:
        tfds = False
        lines.append("TensorFlow is not installed: no TFDS dataset; caches will be filled straight from the release")
    built = _build(kept, folder) if tfds else []
    manifest = Manifest(
        folder=folder,
        release=Path(release_path).expanduser().resolve(),
        name=release.root.name,
        fingerprint=fingerprint,
        options=options,
        counts=_counts(kept),
        exclusions=tuple(str(exclusion) for exclusion in report.exclusions),
        groups=_groups(report, kept),
        grading=_photographs(kept),
        tfds=tfds or (before is not None and before.tfds),
    )
    if manifest != before:
        write_manifest(manifest)
    atomic.write_text(folder.parent / "latest", fingerprint + "\n")
    there = "already prepared, nothing done again" if manifest == before and not built else "prepared"
    return manifest, "\n".join([report.text(), *lines, f"fingerprint {fingerprint[:16]}, {there}: {folder}"])


def _build(release: Release, folder: Path) -> list[str]:
    """Builds the configs that are not there yet; returns their names."""
    from idrid_jax.data.idrid import Builder

    version = str(Builder.VERSION)
    missing = [config for config in CONFIGS
               if getattr(release, config) and not (folder / "idrid" / config / version / "dataset_info.json").is_file()]
    if not missing:
        return []
    tensorflow, tensorflow_datasets = import_tfds()
    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    for config in missing:
        with atomic.partial_folder(folder) as partial:
            builder = Builder(release=release, config=config, data_dir=partial)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it says where it writes: not where it will lie
                    builder.download_and_prepare()
            except Exception as error:  # TFDS wraps what its generators raise
                if mistake := _user_error(error):
                    raise mistake from error
                if isinstance(error, tensorflow.errors.OpError):  # TensorFlow's own for a full disk and the like
                    raise UserError(f"cannot write under {folder}: {error.message.splitlines()[0]}; "
                                    "free some space or name another --data_dir") from error
                raise
            atomic.publish(partial / "idrid" / config / version, folder / "idrid" / config / version)
    return missing


def _user_error(error: BaseException | None) -> UserError | None:
    """The innermost UserError among an exception and its causes."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__cause__ or error.__context__
    return found


def _photographs(release: Release) -> dict[str, tuple[Photograph, ...]]:
    """The graded photographs by split. To be called after `release.fingerprint()`, which digests them."""
    return {
        split: tuple(
            Photograph(f"{split}/{r.id}", r.grade, r.edema, release.digests[r.image], r.image)
            for r in sorted(release.grading, key=lambda record: record.id) if r.split == split
        )
        for split in SPLITS
    }  # fmt: skip


def _groups(report: Audit, kept: Release) -> tuple[tuple[str, ...], ...]:
    """Ids of graded photographs that are the same one, of those that were kept."""
    ids = {f"{record.split}/{record.id}" for record in kept.grading}
    groups = []
    for group in report.groups:
        names = [f"{record.split}/{record.id}" for record in group.records if isinstance(record, Graded)]
        groups.append(tuple(name for name in names if name in ids))
    return tuple(group for group in groups if len(group) > 1)


def _counts(release: Release) -> dict[str, dict]:
    def of(records, split):
        return [record for record in records if record.split == split]

    return {
        "grading": {
            split: [sum(record.grade == grade for record in of(release.grading, split)) for grade in range(len(GRADES))]
            for split in SPLITS
        },
        "segmentation": {
            split: {"photographs": len(of(release.segmentation, split))}
            | {lesion: sum(lesion in record.masks for record in of(release.segmentation, split)) for lesion in LESIONS}
            for split in SPLITS
        },
        "localization": {split: len(of(release.localization, split)) for split in SPLITS},
    }
