"""What a run checks while it trains: snapshots (image grids and metrics), divergence and collapse."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax.data.cache import Split
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.images import image_grid, mirror_where, to_uint8
from idrid_jax.models import NETWORKS
from idrid_jax.models.functional import Functional, recompute_batch_stats
from idrid_jax.training import multihost, optimizers
from idrid_jax.training.losses import LOSSES
from idrid_jax.training.run_dir import RunDir
from idrid_jax.training.sharding import replicated
from idrid_jax.training.state import TrainState

GRID_COLUMNS, MAX_GRID_WIDTH = 12, 4096  # images per row; fewer where the picture would be wider, in pixels
METRIC_IMAGES = 200  # generated images that snapshot metrics use, at 128 pixels and below; fewer above

# (generated uint8 [N, R, R, C], their grades int32 [N], training split, validation split) -> numbers to log. "rejected"
# above 0: do not choose this checkpoint. Its attribute `names` lists the metrics that may choose one.
ComputeMetrics = Callable[[np.ndarray, np.ndarray, Split, Split], dict[str, float]]


# -- Snapshots


class Snapshots:
    """Image grids and metrics of the generator, with the same latents and grades at every snapshot of a run."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        generator: Functional,
        mesh: jax.sharding.Mesh,
        split: Split,
        validation: Split,
        metrics: ComputeMetrics | None,
    ):
        self._config, self._generator, self._mesh = config, generator, mesh
        self._split, self._validation, self._metrics = split, validation, metrics
        self._network = network = NETWORKS[config.network]
        self._columns = max(2, min(GRID_COLUMNS, MAX_GRID_WIDTH // network.size))
        grid_grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), self._columns)  # one grade per row
        self._grid_size, self._sample_grid = len(grid_grades), self._sampler(0x6121D, grid_grades)
        mixture = np.random.default_rng(config.seed).permutation(split.grades)  # in the proportions of the split
        self._grades = np.resize(mixture, max(40, int(METRIC_IMAGES * min(1, 128 / network.size))))
        self._sample = self._sampler(0x3EA5, self._grades)

    def _sampler(self, stream: int, grades: np.ndarray) -> Callable[[TrainState], jax.Array]:
        """Return state -> generated images of fixed latents for these grades."""
        condition, network = optimizers.grade_conditioning(self._config), self._network
        key = jax.random.fold_in(jax.random.key(self._config.seed), stream)
        z = jax.random.normal(key, (len(grades), network.latent_size))

        def sample(state):
            conditioning = condition(jnp.asarray(grades), state.step)
            return sample_images(
                self._generator, state, z, conditioning, network.sample_batch_size, self._split.left_eye_share
            )

        return jax.jit(sample, out_shardings=replicated(self._mesh))

    def fakes(self, state: TrainState) -> Image.Image:
        """Return a grid of generated images, one grade per row if the network is conditional."""
        return image_grid(np.asarray(self._sample_grid(state)), self._columns)

    def reals(self) -> Image.Image:
        """Return a grid of photographs: one grade per row if the network is conditional, else in their order."""
        if not self._network.conditional:
            return image_grid(np.asarray(self._split.images[: self._grid_size]), self._columns)
        images = np.zeros((self._grid_size, *self._split.images.shape[1:]), np.uint8)
        for grade in range(len(GRADES)):
            members = np.flatnonzero(self._split.grades == grade)[: self._columns]
            images[grade * self._columns :][: len(members)] = self._split.images[members]
        return image_grid(images, self._columns)

    def metrics(self, state: TrainState) -> dict[str, float]:
        """Return the snapshot's metrics, {} without any. All processes generate; process 0 computes and broadcasts."""
        if self._metrics is None:
            return {}
        fakes = np.asarray(self._sample(state))
        return multihost.run_on_first(lambda: self._metrics(fakes, self._grades, self._split, self._validation))


def sample_images(
    generator: Functional,
    state: TrainState,
    z: jax.Array,
    grades: jax.Array,
    batch_size: int,
    left_eye_share: float = 0.0,
) -> jax.Array:
    """Generate images as a sampler of this state would: latents z [N, L] -> uint8 [N, R, R, C]; pure.

    grades: what the generator is conditioned on, [N, ...].
    batch_size: images generated at a time; the largest divisor of N up to it is used.
    left_eye_share: share of the images that is mirrored, always the same ones; for a generator of right eyes alone.
    """
    params, stats = state.sampling_params, state.g.stats
    if state.ema and stats:  # the running statistics belong to other parameters
        stats = recompute_batch_stats(generator, params, stats, z.shape[1], grades, batch_size)
    size = next(n for n in range(min(batch_size, len(z)), 0, -1) if len(z) % n == 0)
    batches = z.reshape(-1, size, z.shape[1]), grades.reshape(-1, size, *grades.shape[1:])
    images = jax.lax.map(lambda batch: to_uint8(generator.eval(params, stats, *batch)), batches)
    images = images.reshape(-1, *images.shape[2:])
    if not left_eye_share:
        return images
    return mirror_where(images, jax.random.bernoulli(jax.random.key(0x51DE), left_eye_share, (len(z),)))


def fakes_name(config: ml_collections.ConfigDict, step: int) -> str:
    """Return the name of the grid at `step`: thousands of images so far, so that names are unique and sort by step."""
    interval, kimg = config_lib.steps(config.snapshot_kimg, config), step * config.batch_size / 1000
    if interval * config.batch_size < 1000:
        return f"fakes_{kimg:010.3f}"
    if step % interval == 0:
        return f"fakes_{round(kimg):06d}"
    return f"fakes_{kimg:010.3f}".replace(".", "_")  # the last grid; a dot would sort before that of .png


def format_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of a snapshot as one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "rejected")


def checkpoint_score(config: ml_collections.ConfigDict, metrics: dict[str, float], step: int) -> float | None:
    """Return the metric that chooses the checkpoint; None if this one must not be chosen, or there is no metric.

    A checkpoint is not chosen if too many of its images are copies of training images, or if it is not yet fully
    conditioned on grades: a release from it would be mislabelled.
    """
    if metrics.get("rejected") or float(optimizers.conditioning_strength(config, step)) < 1 - 1e-6:
        return None
    return metrics.get(config.checkpoint.best)


def check_best_metric(config: ml_collections.ConfigDict, names: Iterable[str]) -> None:
    """Raise UserError if `config.checkpoint.best` is none of the metrics `names`."""
    best = config.checkpoint.best
    if best and best not in names:
        raise UserError(f"config.checkpoint.best = {best!r}: {suggest_name(best, sorted(names))}")


# -- Divergence


class TrainingDiverged(UserError):
    """A loss, a gradient, a parameter or a statistic is NaN or infinite."""


def check_finite_metrics(
    config: ml_collections.ConfigDict, run_dir: RunDir, rows: list[dict[str, float]], step: int
) -> None:
    """Raise TrainingDiverged if a loss or gradient norm in `rows`, metrics up to `step`, is not finite."""
    for row_step, row in enumerate(rows, step - len(rows) + 1):
        for suffix, network, rates in (
            ("d", "discriminator", ["d"]),
            ("g", "generator, or of the discriminator just updated,", ["d", "g"]),  # G's loss is computed by D
        ):
            for name in (f"loss_{suffix}", f"grad_norm_{suffix}"):
                if not np.isfinite(row[name]):
                    found = f"step {row_step}: {name} of the {network} is {row[name]}"
                    raise TrainingDiverged(f"{found}; {_advice(config, run_dir, rates)}")


def check_finite_state(config: ml_collections.ConfigDict, run_dir: RunDir, state: TrainState, step: int) -> None:
    """Raise TrainingDiverged if a network is not finite: before a save, so that no broken checkpoint is written."""
    for rate, network, part in (("d", "discriminator", state.d), ("g", "generator", (state.g, state.ema))):
        if not _all_finite(part):
            found = f"step {step}: a parameter or statistic of the {network} is not finite"
            raise TrainingDiverged(f"{found}; {_advice(config, run_dir, [rate])}")


def _advice(config, run_dir: RunDir, networks) -> str:
    fields = [f"{network}_learning_rate" for network in networks]
    rates = " or ".join(f"config.optimizer.{field} ({config.optimizer[field]:g})" for field in fields)
    change = f"lower {rates} or set config.optimizer.clip_norm"
    if run_dir.has_checkpoints():  # a run resumes with its own configuration
        return (
            f"the last good checkpoint stays in {run_dir.path}: {change} in another --workdir, with "
            f"--config.init_from={run_dir.path} to keep the networks"
        )
    elsewhere = " in another --workdir" if run_dir.has_results() else ""
    return f"no checkpoint is in {run_dir.path} yet: {change}{elsewhere}"


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


# -- Collapse

MIN_DIVERSITY = 0.25  # of photographs': a warning below it, if it was twice as high before
SATURATED = 0.01  # probability that D is wrong; below it G's gradient vanishes


class TrainingCollapsed(UserError):
    """Training collapsed and `config.on_collapse` is "stop"."""


def find_collapse(rows: list[dict], loss: str) -> str | None:
    """Describe a collapse at the last snapshot in one line, None if there is none; pure.

    Mode collapse: the diversity of generated images has fallen. Discriminator saturation: D separates real and fake
    images almost surely, so G learns nothing (not decidable under `wasserstein`).

    rows: of stats.jsonl, oldest first; the last one is a snapshot's, with its metrics. loss: a name in `LOSSES`.
    """
    snapshots = [i for i, row in enumerate(rows) if "diversity" in row or "ssim_within" in row]
    if not snapshots or snapshots[-1] != len(rows) - 1:
        return None
    found = []
    diversity = [rows[i]["diversity"] for i in snapshots if "diversity" in rows[i]]
    if diversity and diversity[-1] < MIN_DIVERSITY and max(diversity) > 2 * diversity[-1]:
        found.append(
            f"mode collapse: diversity has fallen to {diversity[-1]:.2f} of photographs' (it was {max(diversity):.2f})"
        )
    since = rows[snapshots[-2] + 1 if len(snapshots) > 1 else 0 :]
    means = {name: sum(row[name] for row in since) / len(since) for name in ("d_real", "d_fake_after", "loss_d")}
    if saturation := _saturation(means, LOSSES[loss]):
        found.append(f"the discriminator is saturated ({saturation}): the generator gets no gradient from it")
    return "; ".join(found) or None


def _saturation(means, loss) -> str:
    if loss.zero_is_boundary and means["d_fake_after"] < SATURATED and means["d_real"] > 1 - SATURATED:
        return f"D(x) {means['d_real']:.3f}, D(G(z)) {means['d_fake_after']:.3f}"
    if loss.paired and (wrong := -math.expm1(-means["loss_d"])) < SATURATED:  # the loss is -log P(right)
        return f"it ranks a pair wrongly with probability {wrong:.1g}"
    return ""
