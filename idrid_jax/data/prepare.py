"""A release as downloaded -> read, audited, built as a TFDS dataset, written down. What `idrid-jax prepare` does."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

from idrid_jax.data import atomic
from idrid_jax.data.audit import Audit, audit
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
    source = release.fingerprint()
    notes = []
    if tfds and importlib.util.find_spec("tensorflow") is None:
        tfds = False
        notes = ["TensorFlow is not installed: no TFDS dataset; caches will be filled straight from the release"]

    path = Path(release_path).expanduser().resolve()
    for manifest in readable_manifests(data_dir / "idrid_jax"):
        same = (manifest.source, manifest.options, manifest.release) == (source, options, path)
        built = [config for config in CONFIGS if (tfds or manifest.tfds) and _holds(manifest.counts[config])]
        there = _sources(manifest) <= {record.image for record in release.grading}
        if same and there and not _missing(manifest.folder, built):
            atomic.write_text(manifest.folder.parent / "latest", manifest.fingerprint + "\n")
            return manifest, _text(manifest, [*notes, "already prepared, nothing is done again"])

    kept, report = audit(release, **options)
    if not kept.records():
        raise UserError(
            f"{release_path}: the audit leaves no photograph; look at its reasons with keep_leaks and "
            "keep_contradictions"
        )
    fingerprint = kept.fingerprint()
    folder = data_dir / "idrid_jax" / fingerprint
    if tfds:
        _build(kept, folder)
    manifest = Manifest(
        folder=folder,
        release=path,
        name=release.root.name,
        fingerprint=fingerprint,
        source=source,
        options=options,
        counts=_counts(kept),
        report=report.text(),
        exclusions=tuple(str(exclusion) for exclusion in report.exclusions),
        groups=_groups(report, kept),
        grading=_photographs(kept),
        tfds=tfds,
    )
    write_manifest(manifest)
    atomic.write_text(folder.parent / "latest", fingerprint + "\n")
    return manifest, _text(manifest, notes)


def _text(manifest: Manifest, notes: list[str]) -> str:
    return "\n".join([manifest.report, *notes, f"prepared as {manifest.fingerprint[:16]} in {manifest.folder}"])


def _sources(manifest: Manifest) -> set[Source]:
    return {photograph.source for photographs in manifest.grading.values() for photograph in photographs}


def _holds(counts) -> bool:
    """Whether there is a number above 0 among nested counts."""
    if isinstance(counts, dict):
        counts = counts.values()
    return counts > 0 if isinstance(counts, int) else any(map(_holds, counts))


def _missing(folder: Path, configs: list[str]) -> list[str]:
    """The configs of the TFDS dataset that are not there yet."""
    return [config for config in configs if not (folder / tfds_path(config) / "dataset_info.json").is_file()]


def _build(release: Release, folder: Path) -> None:
    """Builds the configs of the TFDS dataset whose part is present and which are not there yet."""
    missing = _missing(folder, [config for config in CONFIGS if getattr(release, config)])
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
                with contextlib.redirect_stdout(io.StringIO()):  # it says where it writes: not where it will lie
                    builder.download_and_prepare()
            except Exception as error:  # TFDS wraps what its generators raise
                if mistake := _user_error(error):
                    raise mistake from error
                if isinstance(error, tensorflow.errors.OpError):  # TensorFlow's own for a full disk and the like
                    raise UserError(
                        f"cannot write under {folder}: {error.message.splitlines()[0]}; "
                        "free some space or name another --data_dir"
                    ) from error
                raise
            atomic.publish(partial / tfds_path(config), folder / tfds_path(config))


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
