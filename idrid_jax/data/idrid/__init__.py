"""The TFDS dataset `idrid`: grading, segmentation and localization, with each photograph's original bytes."""

from idrid_jax.data.idrid.idrid_dataset_builder import Builder

__all__ = ["Builder"]
