"""Features cached on disk under a key of the images' content and the extractor's name."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from idrid_jax.data import atomic
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features.extractor import FeatureExtractor

FILE = "features.npy"


def cached_features(extractor: FeatureExtractor, images: np.ndarray, folder: Path | str) -> np.ndarray:
    """Return extractor.extract(images), float32 [N, D], from `folder` if it was computed before.

    images: uint8 [N, H, W, C]. An entry that cannot be read is computed again and replaced. If `folder` cannot be
    written, nothing is cached and nothing fails.
    """
    images = np.asarray(images)
    target = Path(folder) / cache_key(images, extractor.name)
    try:
        cached = np.load(target / FILE, allow_pickle=False)
        if cached.ndim == 2 and len(cached) == len(images) and cached.dtype == np.float32 and np.isfinite(cached).all():
            return cached
    except (OSError, ValueError, EOFError):
        pass
    features = np.asarray(extractor.extract(images), np.float32)
    write_entry(target, lambda entry: np.save(entry / FILE, features))
    return features


def cache_key(images: np.ndarray, name: str) -> str:
    """Return 32 hexadecimal digits that identify uint8 images [N, H, W, C] and the extractor's name."""
    digest = hashlib.sha256(f"{name}|{images.dtype}|{images.shape}|".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:32]


def write_entry(target: Path, save: Callable[[Path], None]) -> None:
    """Replace the folder `target` by one that save(folder) fills; write it completely, or nothing if that fails."""
    try:
        with atomic.partial_folder(target.parent) as partial:
            entry = partial / "entry"
            entry.mkdir()
            save(entry)
            shutil.rmtree(target, ignore_errors=True)
            atomic.publish(entry, target)
    except (OSError, UserError):
        pass
