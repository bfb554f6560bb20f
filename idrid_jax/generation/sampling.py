"""Generate images by grade with the generator of a training checkpoint."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.images import mirror_where, to_uint8
from idrid_jax.models import NETWORKS, Network, build_networks
from idrid_jax.models.functional import Functional, recompute_batch_stats
from idrid_jax.training.checkpoint import read_run
from idrid_jax.training.optimizers import conditioning_strength, grade_conditioning
from idrid_jax.training.run_dir import RunRecord
from idrid_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The generator of one checkpoint.

    Attributes:
      config: the configuration of the run.
      run: the record of the run.
      step: number of updates before the checkpoint.
      generator: the network without its arrays.
      params: its parameters: their moving average if the run keeps one.
      stats: its BatchNorm statistics.
      batch_statistics: how `stats` were computed: "running", "recomputed", or "none" for a network without BatchNorm.
      truncation: factor of the latents. Below 1, images are more typical and less diverse; Karras et al. 2019,
        appendix B, do this to the output of a mapping network.
    """

    config: ml_collections.ConfigDict
    run: RunRecord
    step: int
    generator: Functional
    params: dict
    stats: dict
    batch_statistics: str
    truncation: float = 1.0

    @property
    def network(self) -> Network:
        return NETWORKS[self.config.network]

    @property
    def conditioning_strength(self) -> float:
        """How strongly the generator is conditioned on the grade at this step, in [0, 1]; see `config.conditioning`."""
        return round(float(conditioning_strength(self.config, self.step)), 6)

    def images(self, grades: np.ndarray, *, seed: int = 0) -> Iterator[np.ndarray]:
        """Generate one image for each of the grades int32 [N]: an iterator of uint8 [R, R, C].

        Image i is a function of (checkpoint, seed, i, grades[i]) alone. A generator that was trained on right eyes only
        (`config.data.canonicalize_laterality`) generates right eyes; each image is then mirrored with the probability
        of a left eye among the training photographs.
        """
        key, batch_size = jax.random.key(seed), self.network.sample_batch_size
        for first in range(0, len(grades), batch_size):
            batch = np.asarray(grades[first : first + batch_size], np.int32)
            padded = np.pad(batch, (0, batch_size - len(batch)))
            indices = first + np.arange(batch_size)
            yield from np.asarray(self._generate(self.params, self.stats, key, indices, padded))[: len(batch)]

    @functools.cached_property
    def _generate(self) -> Callable:
        """Jitted (params, stats, key, indices int [B], grades int32 [B]) -> uint8 [B, R, R, C]."""
        condition, left_share = grade_conditioning(self.config), self.run.left_eye_share

        def generate(params, stats, key, indices, grades):
            z = self.truncation * sample_latents(key, indices, self.network.latent_size)
            images = to_uint8(self.generator.eval(params, stats, z, condition(grades, self.step)))
            return mirror_where(images, _mirrored(key, indices, left_share)) if left_share else images

        return jax.jit(generate)


def load_sampler(run_dir: Path | str, step: int | None = None, *, batch_statistics: str = "auto") -> Sampler:
    """Load the generator of a checkpoint in `run_dir`.

    Args:
      run_dir: directory of a run of `idrid-jax train`.
      step: of the checkpoint; None: the one that `read_run` chooses.
      batch_statistics: "running": BatchNorm statistics as collected in training; "recomputed": of the loaded
        parameters, by `recompute_batch_stats`; "auto": recomputed for a moving average, which no training batch has
        passed, else running.

    Raises:
      UserError: where `read_run` does.
    """
    run = read_run(run_dir, step=step)
    return sampler_from_state(run.record, run.state, batch_statistics=batch_statistics)


def sampler_from_state(run: RunRecord, state: TrainState, *, batch_statistics: str = "auto") -> Sampler:
    """Return the generator of a state that `read_run` has read; `batch_statistics` as in `load_sampler`."""
    network = NETWORKS[run.config.network]
    generator, _ = build_networks(run.config)
    params, stats = state.sampling_params, state.g.stats
    if batch_statistics == "auto":
        batch_statistics = "recomputed" if state.ema else "running"
    if not stats:
        batch_statistics = "none"
    elif batch_statistics == "recomputed":
        mixture = np.repeat(np.arange(len(GRADES), dtype=np.int32), run.counts)
        recompute = jax.jit(recompute_batch_stats, static_argnums=(0, 3, 5))
        stats = recompute(generator, params, stats, network.latent_size, mixture, network.sample_batch_size)
    return Sampler(run.config, run, int(state.step), generator, params, stats, batch_statistics)


def check_conditioned(sampler: Sampler) -> None:
    """Raise UserError if the generator is not conditioned on grades yet at the step of its checkpoint."""
    if not sampler.conditioning_strength:
        start = sampler.config.conditioning.start_kimg
        raise UserError(
            f"step {sampler.step} of {sampler.config.network} comes before its conditioning on grades starts "
            f"(config.conditioning.start_kimg = {start:g}): choose the --step of a later checkpoint, or train on"
        )


def sample_latents(key: jax.Array, indices: jax.Array, latent_size: int) -> jax.Array:
    """Sample latents from N(0, 1), float32 [N, latent_size]; latent n is a function of (key, indices[n])."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (latent_size,)))(indices)


def _mirrored(key: jax.Array, indices: jax.Array, probability: float) -> jax.Array:
    """Choose the images to mirror: bool [N]; entry n is a function of (key, indices[n])."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 1))(indices)
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
