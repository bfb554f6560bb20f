"""Features on disk: keyed by the images' content, their size and the network, written whole or not at all."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from idrid_jax.data import atomic
from idrid_jax.errors import UserError

FILE = "features.npy"


def key(images: np.ndarray, network: str) -> str:
    """uint8 [N, H, W, C] and the features' name -> 32 hexadecimal digits."""
    digest = hashlib.sha256(f"{network}|{images.dtype}|{images.shape}|".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:32]


def features(images: np.ndarray, network: str, extract: Callable, folder: Path | str) -> np.ndarray:
    """extract(images), float32 [N, D], read from `folder` where it has been computed before.

    What cannot be read is computed again and replaced; a folder that cannot be written is done without.
    """
    images = np.asarray(images)
    target = Path(folder) / key(images, network)
    try:
        kept = np.load(target / FILE, allow_pickle=False)
        if kept.ndim == 2 and len(kept) == len(images) and kept.dtype == np.float32 and np.isfinite(kept).all():
            return kept
    except (OSError, ValueError, EOFError):
        pass
    found = np.asarray(extract(images), np.float32)
    keep(target, lambda entry: np.save(entry / FILE, found))
    return found


def keep(target: Path, save: Callable[[Path], None]) -> None:
    """The folder `target` with what `save` writes into an empty one, whole, in the place of what was there; where that
    cannot be written, nothing."""
    try:
        with atomic.partial_folder(target.parent) as partial:
            entry = partial / "entry"
            entry.mkdir()
            save(entry)
            shutil.rmtree(target, ignore_errors=True)
            atomic.publish(entry, target)
    except (OSError, UserError):
        pass
