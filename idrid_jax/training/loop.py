"""The training loop, to be read from top to bottom. Read it first; `update.py` is what one update computes."""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections

from idrid_jax.config import steps
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.pipeline import choose_pipeline, tfdata
from idrid_jax.data.splits import find_release, load_training_splits
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import monitoring, multihost, run_dir
from idrid_jax.training.checkpoint import Checkpoints, find_source, init_from_run
from idrid_jax.training.logging import Log, NullLog, read_stats
from idrid_jax.training.monitoring import Snapshots, TrainingCollapsed
from idrid_jax.training.run_dir import RunDir
from idrid_jax.training.sharding import mesh_from_config
from idrid_jax.training.state import TrainState, abstract_state, fresh_state
from idrid_jax.training.train_step import make_train_step

MAX_PENDING = 2  # calls of the step dispatched beyond the one waited for: devices do not wait for the host's logging


def train(
    config: ml_collections.ConfigDict,
    workdir: Path | str,
    manifest: Manifest | None = None,
    snapshot_metrics: monitoring.ComputeMetrics | None = None,
) -> TrainState:
    """Train `config` in `workdir`, or resume from its newest checkpoint; return the final state.

    Args:
      config: validated and resolved (`config.validated`).
      workdir: the run directory.
      manifest: the prepared release; None: the one that `config.data` names.
      snapshot_metrics: computed at every snapshot; one of them may choose the checkpoint.

    Raises UserError if the configuration does not fit the data, the devices or the run directory; TrainingDiverged if
    numbers are not finite (the last good checkpoint is then untouched); TrainingCollapsed under `on_collapse` = "stop".
    SIGTERM and Ctrl-C save at the step that they interrupt, and return.

    With several processes (`multihost.initialize`) each calls this; process 0 writes everything but its share of a
    checkpoint.
    """
    start = time.monotonic()
    monitoring.check_best_metric(config, getattr(snapshot_metrics, "names", ()))
    paths, network = RunDir(workdir), NETWORKS[config.network]
    if config.init_from and not paths.has_checkpoints():  # a resumed run does not need it
        find_source(config)

    # -- What the processes must have in common, and devices
    manifest = manifest or multihost.run_on_each(lambda: find_release(config))
    if multihost.process_count() > 1:
        multihost.check_same(run_dir.shared_facts(config, manifest))
    mesh = mesh_from_config(config, network.size)
    multihost.check_devices(mesh)
    multihost.run_on_each(lambda: run_dir.check_resume(paths.path, config, manifest))

    with (
        run_dir.lock(paths.path),
        Checkpoints(
            paths.path,
            manifest.fingerprint,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=_keep_every_steps(config),
        ) as checkpoints,
    ):
        # -- Data: process 0 fills a shared cache before the others read it
        if multihost.process_count() > 1:
            multihost.run_on_first(lambda: load_training_splits(config, manifest) and None)
        split, validation = multihost.run_on_each(lambda: load_training_splits(config, manifest))
        if choose_pipeline(config, split, mesh) == "tfdata":
            tfdata.check_shares(split.grades, config.data.sampling, multihost.process_count(), config.data.temperature)

        # -- State: resumed, or fresh, perhaps with another run's networks
        state, notes = checkpoints.restore(abstract_state(config, mesh)), []
        if state is None:
            state = fresh_state(config, mesh)
            if config.init_from:
                state, notes = init_from_run(config, state)
        first_step, last_step = int(state.step), steps(config.total_kimg, config)
        multihost.run_on_first(lambda: run_dir.write_record(paths.path, config, manifest, split.left_eye_share))

        # -- The compiled step, snapshots and the log
        train_step = make_train_step(config, mesh, split, first_step)
        snapshots = Snapshots(config, build_networks(config)[0], mesh, split, validation, snapshot_metrics)
        snapshot_every = steps(config.snapshot_kimg, config)
        with (
            _open_log(config, paths, first_step, last_step, len(split)) as log,
            multihost.interruption() as interrupted,
        ):
            run = _Run(config, paths, checkpoints, snapshots, log)
            if first_step:
                log.message(f"resuming from step {first_step} ({first_step * config.batch_size / 1000:.1f} kimg)")
            else:
                for note in notes:
                    log.message(note)
                log.image("reals", snapshots.reals(), 0)
                log.image(monitoring.fakes_name(config, 0), snapshots.fakes(state), 0)

            # -- Train
            step, pending = first_step, _PendingMetrics(first_step, train_step.updates, steps(config.log_kimg, config))
            while step < last_step:
                state, metrics = train_step(state)
                step += train_step.updates
                pending.add(metrics)
                if pending.calls == 1:
                    jax.block_until_ready(metrics)  # it is compiled now
                    log.message(f"first step after {time.monotonic() - start:.1f} s")
                    log.start_clock(step)

                stop = interrupted(pending.calls)
                snapshot_due = step % snapshot_every == 0 or step == last_step
                measured = {}
                for log_step, rows in pending.log_due(read_all=snapshot_due or stop):
                    monitoring.check_finite_metrics(config, paths, rows, log_step)
                    rate = log.read_clock(log_step)
                    if snapshot_due and log_step == step:
                        measured = run.snapshot(state, step)
                    log.scalars(log_step, rows, rate, measured)
                if snapshot_due or stop:
                    run.save(state, step, measured)
                    log.start_clock(step)
                if snapshot_due:
                    run.check_collapse(step)
                if stop:
                    checkpoints.wait()
                    log.message(f"interrupted: saved step {step}; the same command resumes from there")
                    break
            else:
                checkpoints.wait()
                if (best := checkpoints.best_step()) is not None:
                    kimg = f"{best * config.batch_size / 1000:g} kimg"
                    log.message(f"best checkpoint: step {best} ({kimg}), with the lowest {config.checkpoint.best}")
    return state


def _open_log(config, paths, first_step, last_step, epoch_images):
    if multihost.process_index():
        return NullLog()
    return Log(
        paths.path,
        total_images=last_step * config.batch_size,
        first_step=first_step,
        batch_size=config.batch_size,
        epoch_images=epoch_images,
        console=config.log.console,
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """The phases of a snapshot."""

    config: ml_collections.ConfigDict
    paths: RunDir
    checkpoints: Checkpoints
    snapshots: Snapshots
    log: Log

    def snapshot(self, state: TrainState, step: int) -> dict[str, float]:
        """Write the grid of generated images; return the metrics."""
        self.log.image(monitoring.fakes_name(self.config, step), self.snapshots.fakes(state), step)
        metrics = self.snapshots.metrics(state)
        if metrics:
            self.log.message(f"{self._kimg(step)} kimg: {monitoring.format_metrics(metrics)}")
        return metrics

    def save(self, state: TrainState, step: int, metrics: dict[str, float]) -> None:
        """Save a checkpoint in the background, if the networks are finite."""
        monitoring.check_finite_state(self.config, self.paths, state, step)
        self.checkpoints.save(step, state, score=monitoring.checkpoint_score(self.config, metrics, step))

    def check_collapse(self, step: int) -> None:
        """Warn, or raise TrainingCollapsed, as `config.on_collapse` says."""
        if self.config.on_collapse == "ignore":
            return
        found = multihost.run_on_first(
            lambda: monitoring.find_collapse(read_stats(self.paths.path), self.config.loss.name)
        )
        if found and self.config.on_collapse == "stop":
            self.checkpoints.wait()
            raise TrainingCollapsed(f"step {step}: stopped, because config.on_collapse = 'stop': {found}")
        if found:
            self.log.message(f"warning at {self._kimg(step)} kimg: {found}")

    def _kimg(self, step):
        return f"{step * self.config.batch_size / 1000:.1f}"


class _PendingMetrics:
    """Metrics of calls that may still run on the devices; read late, so that the host does not wait for them."""

    def __init__(self, first_step: int, updates: int, log_every: int):
        self.calls = 0
        self._read, self._updates, self._log_every = first_step, updates, log_every  # _read: last step that was read
        self._metrics = deque()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add a call's metrics, each float32 [updates]; wait for the call MAX_PENDING before."""
        self._metrics.append(metrics)
        self.calls += 1
        if len(self._metrics) > MAX_PENDING:
            jax.block_until_ready(self._metrics[-1 - MAX_PENDING])

    def log_due(self, read_all: bool) -> Iterator[tuple[int, list[dict[str, float]]]]:
        """Yield the steps that are due to be logged, with the metrics of each update since the one before.

        Due are the multiples of `log_every`, once they are finished; with `read_all` also the newest step.
        """
        newest = self._read + len(self._metrics) * self._updates
        finished = newest if read_all else newest - MAX_PENDING * self._updates
        for step in range(self._read + self._updates, finished + 1, self._updates):
            if step % self._log_every == 0 or step == newest:
                calls = [self._metrics.popleft() for _ in range((step - self._read) // self._updates)]
                self._read = step
                yield step, _rows(jax.device_get(calls))


def _rows(calls):
    """Split the metrics of calls, each float32 [updates], into one dict per update."""
    return [{name: value[i] for name, value in call.items()} for call in calls for i in range(len(call["loss_d"]))]


def _keep_every_steps(config) -> int:
    """Return the multiple of the snapshot interval that is nearest to `checkpoint.keep_every_kimg`; 0 for none."""
    if not config.checkpoint.keep_every_kimg:
        return 0
    every = max(1, round(config.checkpoint.keep_every_kimg / config.snapshot_kimg))
    return every * steps(config.snapshot_kimg, config)
