"""The TFDS dataset `idrid`: grading, segmentation and localization, each photograph's bytes as they were released."""

from idrid_jax.data.idrid.idrid_dataset_builder import Builder

__all__ = ["Builder"]
