"""What every network of features is to the measures: a name and a function."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Network:
    """A network that turns images into features.

    Attributes:
      name: written beside every number it gives, and part of the key under which features are kept: another name for
        other weights.
      extract: uint8 [N, H, W, C], C 1 or 3 -> float32 [N, D].
    """

    name: str
    extract: Callable[[np.ndarray], np.ndarray]


def checked(images: np.ndarray) -> np.ndarray:
    """Images as networks take them, or ValueError: uint8 [N, H, W, C], C 1 or 3."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise ValueError(f"images are {images.dtype} {images.shape}; features need uint8 [N, H, W, C], C 1 or 3")
    return images
