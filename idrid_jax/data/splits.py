"""The photographs that a configuration trains and evaluates on: find the release, load its splits, check their size."""

import dataclasses
import math

import ml_collections

from idrid_jax.data import cache, class_merging, folds, laterality
from idrid_jax.data.manifest import Manifest, find_prepared
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS

MAX_ENLARGEMENT = 1.05  # of photographs that are smaller than the network's images


def find_release(config: ml_collections.ConfigDict) -> Manifest:
    """Return the prepared release that `config.data` names. Raises UserError if there is none."""
    return find_prepared(config.data.data_dir or None, config.data.release)


def load_split(
    config: ml_collections.ConfigDict, manifest: Manifest, split: str, size: int | None = None
) -> cache.Split:
    """Load a split ("train" or "test") of a prepared release, preprocessed as `config` says.

    `size` is the side of the images in pixels; by default that of the network. Raises UserError as `cache.load` does.
    """
    network = NETWORKS[config.network]
    size = network.size if size is None else size
    return cache.load(manifest, split, size=size, channels=network.channels, crop=config.data.crop)


def load_training_splits(config: ml_collections.ConfigDict, manifest: Manifest) -> tuple[cache.Split, cache.Split]:
    """Load the training split in two parts: the training examples, and the held-out validation fold (may be empty).

    With `config.data.canonicalize_laterality` both parts know which photographs show left eyes. Their images stay as
    they are: the input pipelines mirror them. Raises UserError if `load_split` or `check_size` does, or if a
    conditional network would get fewer than `config.data.min_images_per_class` training examples of a class.
    """
    check_size(config, manifest)
    train = load_split(config, manifest, "train")
    if config.data.canonicalize_laterality:
        train = dataclasses.replace(train, is_left_eye=laterality.is_left_eye(train.images))
    held_out = folds.validation_mask(manifest, config.data.validation_folds)
    examples = train.subset(~held_out) if held_out.any() else train
    if NETWORKS[config.network].conditional:
        class_merging.check_class_counts(
            examples.grades, config.data.merge_classes, config.data.min_images_per_class, config.network
        )
    return examples, train.subset(held_out)


def check_size(config: ml_collections.ConfigDict, manifest: Manifest) -> None:
    """Raise UserError if the network's images are larger than the photographs: it would learn interpolated pixels."""
    size = NETWORKS[config.network].size
    available = cache.available_training_size(manifest, config.data.crop, size)
    if available is None or size <= MAX_ENLARGEMENT * available:
        return
    largest = 2 ** int(math.log2(MAX_ENLARGEMENT * available))
    fitting = [name for name, network in NETWORKS.items() if network.size == largest]
    raise UserError(
        f"config.network = {config.network!r} generates images of {size} pixels, but the photographs of "
        f"{manifest.name} have only {available}: the largest size that fits is {largest}"
        + (f"; choose {' or '.join(fitting)}" if fitting else "")
    )
