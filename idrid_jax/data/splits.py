"""The photographs that a configuration trains and evaluates on: find the release, load its splits, check their size."""

import dataclasses
import math

import ml_collections
import numpy as np

from idrid_jax.data import cache, class_counts, folds, laterality
from idrid_jax.data.layout import GRADES, SPLITS
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
    """Load what a run trains on in two parts: the training examples, and the validation fold (may be empty).

    They are the training split, or with `config.data.held_out_fold` all graded photographs without that fold. With
    `config.data.canonicalize_laterality` both parts know which photographs show left eyes. Their images stay as they
    are: the input pipelines mirror them. Raises UserError if `load_split` or `check_size` does, or if a conditional
    network would get fewer than `config.data.min_images_per_class` training examples of a class.
    """
    check_size(config, manifest)
    train = load_training_photographs(config, manifest)
    if config.data.canonicalize_laterality:
        train = dataclasses.replace(train, is_left_eye=laterality.is_left_eye(train.images))
    is_validation = validation_mask(config, manifest)
    examples = train.subset(~is_validation) if is_validation.any() else train
    if NETWORKS[config.network].conditional:
        class_counts.check_class_counts(
            examples.grades, config.data.merge_classes, config.data.min_images_per_class, config.network
        )
    return examples, train.subset(is_validation)


def load_training_photographs(config: ml_collections.ConfigDict, manifest: Manifest) -> cache.Split:
    """Load the photographs that a run could have seen; they and errors as of `load_evaluation_splits`."""
    if config.data.held_out_fold == folds.NO_FOLD:
        return load_split(config, manifest, "train")  # the test split need not be in the cache
    return load_evaluation_splits(config, manifest)[0]


def load_evaluation_splits(
    config: ml_collections.ConfigDict, manifest: Manifest, size: int | None = None
) -> tuple[cache.Split, cache.Split]:
    """Load the photographs that a run could have seen, and those that it never saw, on which it is evaluated.

    The first are the training examples and the validation fold together (`validation_mask` separates them). The
    second are the test split, empty for a release without one, or the fold `config.data.held_out_fold`.

    size: side of the images in pixels; by default that of the network. Raises UserError as `cache.load` does.
    """
    train = load_split(config, manifest, "train", size)
    test = load_split(config, manifest, "test", size) if manifest.grading["test"] else train.subset(np.arange(0))
    if config.data.held_out_fold == folds.NO_FOLD:
        return train, test
    everything = cache.concatenate([train, test])
    is_held_out = folds.held_out_folds(manifest) == config.data.held_out_fold
    return everything.subset(~is_held_out), everything.subset(is_held_out)


def count_photographs(config: ml_collections.ConfigDict, manifest: Manifest) -> dict[str, list[int]]:
    """Count the photographs of `load_evaluation_splits` by grade, from the labels alone.

    Returns {"training": those that a run could have seen, "held_out": those that it never saw}, each five counts.
    """
    grades = np.array([photograph.grade for split in SPLITS for photograph in manifest.grading[split]], int)
    is_held_out = np.arange(len(grades)) >= len(manifest.grading["train"])
    if config.data.held_out_fold != folds.NO_FOLD:
        is_held_out = folds.held_out_folds(manifest) == config.data.held_out_fold
    return {
        name: np.bincount(grades[which], minlength=len(GRADES)).tolist()
        for name, which in (("training", ~is_held_out), ("held_out", is_held_out))
    }


def validation_mask(config: ml_collections.ConfigDict, manifest: Manifest) -> np.ndarray:
    """Return which photographs of `load_evaluation_splits(...)[0]` are the run's validation fold: bool [N]."""
    return folds.validation_mask(manifest, config.data.validation_folds, config.data.held_out_fold)


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
