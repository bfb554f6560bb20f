"""Classical augmentation of images that graders are trained on: mirrored, rotated, relit.

The transforms are those of `training.augment`, without its small strengths: a grader needs no upright eyes.
"""

import functools

import jax
import numpy as np
from PIL import Image

from idrid_jax.batching import map_in_batches
from idrid_jax.evaluation.features import resize
from idrid_jax.images import mirror_where, to_float, to_uint8
from idrid_jax.training import augment

STRENGTHS = augment.Strengths(rotation=180, zoom=0.1, shift=0.03, brightness=0.2, contrast=0.2, saturation=0.2)
BATCH_SIZE = 16


def augmented(images: np.ndarray, seed: int, *, min_size: int | None = None) -> np.ndarray:
    """Return each image transformed once: uint8 [N, S, S, C], a function of the images and the seed.

    Half of the images are mirrored; each is rotated by any angle, and scaled, shifted, and changed in brightness,
    contrast and saturation by uniform amounts within `STRENGTHS`. What lies beyond the edges is black.

    Args:
      images: uint8 [N, R, R, C].
      min_size: side in pixels to which smaller images are enlarged first (S = max(R, min_size)). Rotated at their own
        size, small images would lose the detail that the plain ones have. Enlarged by Pillow, bicubic.
    """
    images = np.asarray(images)
    if min_size is not None and images.shape[1] < min_size and len(images):
        images = resize.pillow(images, min_size, Image.Resampling.BICUBIC)
    transform = functools.partial(_transform, jax.random.key(seed))
    return map_in_batches(transform, images, np.arange(len(images)), batch_size=BATCH_SIZE)


@jax.jit
def _transform(key, images, places):
    """Transform a batch whose first image stands at places[0]."""
    mirror_key, key = jax.random.split(jax.random.fold_in(key, places[0]))
    mirrored = mirror_where(to_float(images), jax.random.bernoulli(mirror_key, shape=(len(images),)))
    return to_uint8(augment.apply(mirrored, key, 1.0, STRENGTHS))
