"""The type that every metric on features takes: a name and a function from images to features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that maps images to feature vectors.

    Attributes:
      name: reported with every number computed from these features, and part of the key of the feature cache, so other
        weights need another name.
      extract: uint8 [N, H, W, C], C 1 or 3 -> float32 [N, D].
      kid_scale: KID divides features by it, see `dinov2.KID_SCALE`.
      input_size: side in pixels to which it resizes images; None: it takes them as they are.
    """

    name: str
    extract: Callable[[np.ndarray], np.ndarray]
    input_size: int | None = None
    kid_scale: float = 1.0

    @property
    def network(self) -> str:
        """The network's name without its weights, such as "efficientnet-lite0"."""
        return self.name.partition(":")[0].partition(" ")[0]


def check_images(images: np.ndarray) -> np.ndarray:
    """Return `images` as an array; raise ValueError unless they are uint8 [N, H, W, C] with C 1 or 3."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise ValueError(f"images are {images.dtype} {images.shape}; features need uint8 [N, H, W, C], C 1 or 3")
    return images
