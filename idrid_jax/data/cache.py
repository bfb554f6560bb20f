"""The cache of preprocessed photographs on disk, in the folder of a prepared release's manifest:

    cache/<size>_<channels>_<crop>_v<VERSION>/<split>/{images.npy,meta.json}

The path contains everything that the pixels depend on: the release's fingerprint, size, channels, crop and
`preprocess.VERSION`. TensorFlow and TFDS are imported only to fill a cache from the TFDS dataset.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idrid_jax.batching import map_in_threads
from idrid_jax.data import atomic
from idrid_jax.data.layout import SPLITS
from idrid_jax.data.manifest import PREPARE_AGAIN, Manifest, Photograph, tfds_path
from idrid_jax.data.preprocess import VERSION, available_size, check_options, preprocess
from idrid_jax.data.tensorflow import import_tfds
from idrid_jax.errors import UserError

logger = logging.getLogger(__name__)


class ImageView:
    """Selected images of a memory-mapped array, or of several joined ones, read from disk when they are indexed.

    `view[rows]` and `view[rows, height]` read those images alone, as `array[index][rows, height]` would after reading
    all; `np.asarray(view)` reads all.
    """

    def __init__(self, array: "np.ndarray | JoinedArrays", index: np.ndarray):
        """Select images `index`, int [N], of `array`, uint8 [M, R, R, C]."""
        self.array = array
        self.index = index
        self.shape = (len(index), *array.shape[1:])
        self.dtype = array.dtype
        self.nbytes = math.prod(self.shape) * array.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        return self.array[(self.index[rows], *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.array[self.index], dtype)


class JoinedArrays:
    """Arrays uint8 [N_i, R, R, C], one after the other along the first axis, without copying them.

    `joined[index]` and `joined[index, height]`, index int or int [...], read those images alone.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])
        self.dtype, self.itemsize = arrays[0].dtype, arrays[0].itemsize

    def __getitem__(self, key) -> np.ndarray:
        index, *rest = key if isinstance(key, tuple) else (key,)
        index = np.asarray(index)
        which = np.searchsorted(self.starts, index, side="right") - 1
        result = np.empty((*index.shape, *self.arrays[0][(slice(0), *rest)].shape[1:]), self.dtype)
        for number, array in enumerate(self.arrays):
            in_array = which == number
            result[in_array] = array[(index[in_array] - self.starts[number], *rest)]
        return result


@dataclass(frozen=True)
class Split:
    """Preprocessed photographs with their labels.

    Attributes:
      images: uint8 [N, R, R, C], read-only: a memory-mapped array, or a view of selected images of one or more.
      grades: int32 [N], 0 to 4.
      edema: int32 [N], risk of macular edema 0 to 2; -1 if unknown.
      ids: such as "train/IDRiD_001".
      is_left_eye: bool [N], the photographs that the input pipelines mirror; None if laterality is not canonicalized.
    """

    images: np.ndarray | ImageView
    grades: np.ndarray
    edema: np.ndarray
    ids: tuple[str, ...]
    is_left_eye: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def left_eye_share(self) -> float:
        """The share of photographs that the input pipelines mirror; 0 if laterality is not canonicalized."""
        return 0.0 if self.is_left_eye is None else float(self.is_left_eye.mean())

    def subset(self, which: np.ndarray) -> "Split":
        """Return the photographs of a mask, bool [N], or at places, int [M], without reading an image."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        view = self.images if isinstance(self.images, ImageView) else ImageView(self.images, np.arange(len(self)))
        return Split(
            ImageView(view.array, view.index[index]),
            self.grades[index],
            self.edema[index],
            tuple(self.ids[i] for i in index),
            None if self.is_left_eye is None else self.is_left_eye[index],
        )


def load(manifest: Manifest, split: str, *, size: int, channels: int, crop: str) -> Split:
    """Load a split of the graded photographs, preprocessed, from the cache; fill the cache first if needed.

    The cache is filled from the TFDS dataset if that was built and TensorFlow is installed, otherwise directly from the
    release, whose files must not have changed since it was prepared. The pixels are the same.

    Args:
      manifest: a prepared release.
      split: "train" or "test".
      size, channels, crop: see `preprocess`.

    Raises:
      UserError: a split without graded photographs; options out of range; a release or TFDS dataset that is gone or
        has changed since it was prepared; a folder that cannot be written, or a full disk.
    """
    check_options(size, channels, crop)
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    photographs = manifest.grading[split]
    if not photographs:
        raise UserError(f"{manifest.release}: its split {split!r} has no graded photograph; prepare another release")
    folder = manifest.folder / "cache" / f"{size}_{channels}_{crop}_v{VERSION}" / split
    meta = {
        "fingerprint": manifest.fingerprint, "size": size, "channels": channels, "crop": crop, "version": VERSION,
        "shape": [len(photographs), size, size, channels], "ids": [photograph.id for photograph in photographs],
    }  # fmt: skip
    images = _read(folder, meta)
    if images is None:
        _fill(folder, meta, manifest, split)
        images = _read(folder, meta)
        if images is None:
            raise UserError(f"{folder}: cannot be read right after it was written; check the disk")
    return Split(
        images=images,
        grades=np.array([photograph.grade for photograph in photographs], np.int32),
        edema=np.array([photograph.edema for photograph in photographs], np.int32),
        ids=tuple(meta["ids"]),
    )


def concatenate(splits: Sequence[Split]) -> Split:
    """Return splits as one, in their order, without reading an image. They know no laterality."""
    views = [
        one.images if isinstance(one.images, ImageView) else one.subset(np.arange(len(one))).images for one in splits
    ]
    joined = JoinedArrays([view.array for view in views])
    return Split(
        ImageView(joined, np.concatenate([view.index + start for view, start in zip(views, joined.starts)])),
        np.concatenate([one.grades for one in splits]),
        np.concatenate([one.edema for one in splits]),
        tuple(name for one in splits for name in one.ids),
    )


def available_training_size(manifest: Manifest, crop: str, enough: int) -> int | None:
    """Return the median of `preprocess.available_size` over three training photographs.

    None if the photographs cannot be read: a filled cache can be used without the release.
    """
    photographs = manifest.grading["train"]
    some = [photographs[i] for i in sorted({0, len(photographs) // 2, len(photographs) - 1})] if photographs else []
    try:
        sizes = [available_size(one.source.read(), str(one.source), crop, enough) for one in some]
    except UserError:
        return None
    return sorted(sizes)[len(sizes) // 2] if sizes else None


def _read(folder: Path, meta: dict) -> np.ndarray | None:
    """Return the images, memory-mapped; None if they are missing or, which is logged, damaged."""
    if not folder.is_dir():
        return None
    try:
        if json.loads((folder / "meta.json").read_text()) != meta:
            raise ValueError("meta.json does not match")
        images = np.load(folder / "images.npy", mmap_mode="r")  # refuses a file shorter than its header says
        if images.dtype != np.uint8 or list(images.shape) != meta["shape"]:
            raise ValueError(f"images.npy is {images.dtype} {images.shape}")
        if (folder / "images.npy").stat().st_size != images.offset + images.nbytes:
            raise ValueError("images.npy has the wrong length")
        return images
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s: damaged cache (%s); filling it again", folder, error)
        return None


def _fill(folder: Path, meta: dict, manifest: Manifest, split: str) -> None:
    """Preprocess all photographs of a split and publish them as `folder`."""
    from_tfds = manifest.tfds and importlib.util.find_spec("tensorflow") is not None
    reads = (_reads_from_tfds if from_tfds else _reads_from_release)(manifest, split)
    size, channels, crop = meta["size"], meta["channels"], meta["crop"]

    def work(index: int, read: Callable[[], bytes]) -> tuple[int, bytes]:
        name = str(manifest.grading[split][index].source)
        return index, preprocess(read(), name, size=size, channels=channels, crop=crop).tobytes()

    with atomic.partial_folder(folder.parent) as partial:
        new = partial / split
        new.mkdir()
        with (new / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(meta["shape"])}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            # Not memory-mapped: on a full disk a write raises an error, but a mapped page would kill the process.
            for index, pixels in _progress(map_in_threads(work, reads), f"{split} at {size}", len(meta["ids"])):
                file.seek(start + index * len(pixels))
                file.write(pixels)
        (new / "meta.json").write_text(json.dumps(meta))
        if folder.is_dir() and _read(folder, meta) is None:
            os.rename(folder, partial / "damaged")
        atomic.publish(new, folder)  # if another process was faster, its cache is the same


def _reads_from_release(manifest: Manifest, split: str) -> Iterator[tuple[int, Callable[[], bytes]]]:
    def read(photograph: Photograph) -> bytes:
        try:
            data = photograph.source.read()
        except (OSError, KeyError) as error:  # KeyError: the zip has no such member
            raise UserError(f"{photograph.source}: gone since it was prepared ({error}); {PREPARE_AGAIN}") from error
        if hashlib.sha256(data).hexdigest() != photograph.sha256:
            raise UserError(f"{photograph.source}: has changed since the release was prepared; {PREPARE_AGAIN}")
        return data

    for index, photograph in enumerate(manifest.grading[split]):
        yield index, lambda photograph=photograph: read(photograph)


def _reads_from_tfds(manifest: Manifest, split: str) -> Iterator[tuple[int, Callable[[], bytes]]]:
    folder = manifest.folder / tfds_path("grading")
    if not folder.is_dir():
        raise UserError(f"{folder}: the TFDS dataset is gone; {PREPARE_AGAIN}")
    tensorflow, tfds = import_tfds()
    from idrid_jax.data.idrid import Builder

    index_of = {photograph.id: index for index, photograph in enumerate(manifest.grading[split])}
    missing = set(index_of)
    builder = Builder(config="grading", data_dir=manifest.folder)
    try:
        dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}, shuffle_files=False)
        for example in tfds.as_numpy(dataset):
            name = example["source_id"].decode()
            missing.discard(name)
            yield index_of[name], lambda data=example["image"]: data
    except (tensorflow.errors.OpError, AssertionError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder}: a damaged TFDS dataset ({reason}); delete it and {PREPARE_AGAIN}") from error
    if missing:
        raise UserError(f"{folder}: a damaged TFDS dataset (without {min(missing)}); delete it and {PREPARE_AGAIN}")


def _progress(items: Iterator, description: str, total: int) -> Iterator:
    from tqdm import tqdm  # imported late: a filled cache needs no progress bar

    # Writes to stderr; disable=None shows the bar only on a terminal.
    return tqdm(items, desc=description, total=total, unit="photograph", disable=None)
