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
