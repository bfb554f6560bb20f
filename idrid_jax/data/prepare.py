"""Prepare a release for training: read it, audit it, build its TFDS dataset, and write its manifest."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.data.audit import PARTS, Audit, audit
from idrid_jax.data.manifest import (
    Manifest,
    Photograph,
    default_data_dir,
    readable_manifests,
    tfds_path,
    write_manifest,
)
from idrid_jax.data.release import GRADES, LESIONS, SPLITS, Graded, Release, Source, read_release
from idrid_jax.data.tensorflow import import_tfds
from idrid_jax.errors import UserError


def prepare(
    release_path: Path | str,
    data_dir: Path | str | None = None,
    *,
    tfds: bool = True,
    keep_leaks: bool = False,
    keep_contradictions: bool = False,
) -> tuple[Manifest, str]:
    """Prepare a release in <data_dir>/idrid_jax/<fingerprint after the audit's exclusions>.

    Each part of the release is built as a config of the TFDS dataset `idrid`; the manifest is written last, and
    `latest` names it. What has been prepared before is not built again, unless a killed process left it incomplete.

    Args:
      release_path: see `read_release`.
      data_dir: by default `default_data_dir()`.
      tfds: build the TFDS dataset. Without it, or without TensorFlow, caches are filled directly from the release.
      keep_leaks, keep_contradictions: see `audit`.

    Returns:
      The manifest, and a report for the user: what was found, what was excluded and why, and where it lies.

    Raises:
      UserError: as `read_release` and `audit`; no photograph remains after the audit; a folder that cannot be written,
        or a full disk.
    """
    data_dir = Path(data_dir).expanduser() if data_dir else default_data_dir()
    options = {"keep_leaks": keep_leaks, "keep_contradictions": keep_contradictions}
    release = read_release(release_path)
    source_fingerprint = release.fingerprint()
    notes = []
    if tfds and importlib.util.find_spec("tensorflow") is None:
        tfds = False
        notes = ["TensorFlow is not installed: no TFDS dataset is built; the release itself fills the caches"]

    path = Path(release_path).expanduser().resolve()
    for manifest in readable_manifests(data_dir / "idrid_jax"):
        same = (manifest.source_fingerprint, manifest.options, manifest.release) == (source_fingerprint, options, path)
        built = [config for config in PARTS if (tfds or manifest.tfds) and _any_positive(manifest.counts[config])]
        has_sources = _sources(manifest) <= {record.image for record in release.grading}
        if same and has_sources and not _missing(manifest.folder, built):
            atomic.write_text(manifest.folder.parent / "latest", manifest.fingerprint + "\n")
            return manifest, _text(manifest, [*notes, "already prepared; nothing to do"])

    remaining, report = audit(release, **options)
    if not remaining.records():
        raise UserError(
            f"{release_path}: the audit excludes every photograph; use keep_leaks or keep_contradictions, whose report "
            "says why"
        )
    fingerprint = remaining.fingerprint()
    folder = data_dir / "idrid_jax" / fingerprint
    if tfds:
        _build_tfds(remaining, folder)
    manifest = Manifest(
        folder=folder,
        release=path,
        name=release.root.name,
        fingerprint=fingerprint,
        source_fingerprint=source_fingerprint,
        options=options,
        counts=_counts(remaining),
        report=report.text(),
        exclusions=tuple(str(exclusion) for exclusion in report.exclusions),
        duplicate_groups=_duplicate_groups(report, remaining),
        grading=_photographs(remaining),
        tfds=tfds,
    )
    write_manifest(manifest)
    atomic.write_text(folder.parent / "latest", fingerprint + "\n")
    return manifest, _text(manifest, notes)


def _text(manifest: Manifest, notes: list[str]) -> str:
    return "\n".join([manifest.report, *notes, f"prepared as {manifest.fingerprint[:16]} in {manifest.folder}"])


def _sources(manifest: Manifest) -> set[Source]:
    return {photograph.source for photographs in manifest.grading.values() for photograph in photographs}


def _any_positive(counts) -> bool:
    """Whether any of the nested counts is above 0."""
    if isinstance(counts, dict):
        counts = counts.values()
    return counts > 0 if isinstance(counts, int) else any(map(_any_positive, counts))


def _missing(folder: Path, configs: list[str]) -> list[str]:
    """Return the configs of the TFDS dataset that have not been built."""
    return [config for config in configs if not (folder / tfds_path(config) / "dataset_info.json").is_file()]


def _build_tfds(release: Release, folder: Path) -> None:
    """Build the missing configs of the TFDS dataset for the parts that the release has."""
    missing = _missing(folder, [config for config in PARTS if getattr(release, config)])
    if not missing:
        return
    from idrid_jax.data.idrid import Builder

    tensorflow, tensorflow_datasets = import_tfds()
    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    for config in missing:
        with atomic.partial_folder(folder) as partial:
            builder = Builder(release=release, config=config, data_dir=partial)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it prints the temporary path
                    builder.download_and_prepare()
            except Exception as error:  # TFDS wraps what its generators raise
                if mistake := _user_error(error):
                    raise mistake from error
                if isinstance(error, tensorflow.errors.OpError):  # such as a full disk
                    raise UserError(
                        f"cannot write under {folder}: {error.message.splitlines()[0]}; "
                        "free some space or choose another --data_dir"
                    ) from error
                raise
            atomic.publish(partial / tfds_path(config), folder / tfds_path(config))


def _user_error(error: BaseException | None) -> UserError | None:
    """Return the innermost UserError among an exception and its causes."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__cause__ or error.__context__
    return found


def _photographs(release: Release) -> dict[str, tuple[Photograph, ...]]:
    """Return the graded photographs by split. Needs the digests that `release.fingerprint()` computes."""
    return {
        split: tuple(
            Photograph(f"{split}/{r.id}", r.grade, r.edema, release.digests[r.image], r.image)
            for r in sorted(release.grading, key=lambda record: record.id) if r.split == split
        )
        for split in SPLITS
    }  # fmt: skip


def _duplicate_groups(report: Audit, remaining: Release) -> tuple[tuple[str, ...], ...]:
    """Return the ids of copies of one graded photograph, among those that remain."""
    ids = {f"{record.split}/{record.id}" for record in remaining.grading}
    groups = []
    for group in report.groups:
        names = [f"{record.split}/{record.id}" for record in group.records if isinstance(record, Graded)]
        groups.append(tuple(name for name in names if name in ids))
    return tuple(group for group in groups if len(group) > 1)


def _counts(release: Release) -> dict[str, dict]:
    def in_split(records, split):
        return [record for record in records if record.split == split]

    grades, counts = range(len(GRADES)), {}
    for split in SPLITS:
        graded, segmented = in_split(release.grading, split), in_split(release.segmentation, split)
        lesions = {lesion: sum(lesion in record.masks for record in segmented) for lesion in LESIONS}
        counts[split] = {
            "grading": [sum(record.grade == grade for record in graded) for grade in grades],
            "segmentation": {"photographs": len(segmented)} | lesions,
            "localization": len(in_split(release.localization, split)),
        }
    return {part: {split: counts[split][part] for split in SPLITS} for part in PARTS}
