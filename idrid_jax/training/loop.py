"""`train`: the training loop, to be read from top to bottom."""

import contextlib
import dataclasses
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np

from idrid_jax.config import steps
from idrid_jax.data.pipeline import choose_pipeline, tfdata
from idrid_jax.data.splits import find_release, load_training_splits
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import alarm, build, curves, divergence, multihost, record, snapshot, train_step, transfer
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.divergence import TrainingDiverged
from idrid_jax.training.logging import Log, Quiet, read_stats
from idrid_jax.training.run_dir import held, saved
from idrid_jax.training.snapshot import OnSnapshot
from idrid_jax.training.state import TrainState

AHEAD = 2  # calls of the step dispatched beyond the one waited for: devices never wait for the host's logging


class TrainingCollapsed(UserError):
    """`alarm` said so, and `config.on_collapse` is "stop"."""


def train(
    config: ml_collections.ConfigDict, workdir: Path | str, on_snapshot: tuple[OnSnapshot, ...] = ()
) -> TrainState:
    """Trains `config` in `workdir`, or goes on where the newest checkpoint there stops; returns the final state.

    Raises UserError for a configuration that cannot run or does not fit the workdir, and TrainingDiverged with the
    step and the network when a loss or gradient is not finite; the last good checkpoint is then untouched. Under
    `config.on_divergence` = "restore" training goes back to that one before (see `divergence`), or where there is none
    yet to its start. SIGTERM and Ctrl-C save at the step they interrupt and return.

    Several processes (`multihost.initialize`) all call this with the same arguments; process 0 writes all files but
    the other processes' shards of a checkpoint.
    """
    start = time.monotonic()
    snapshot.check_best(config, {name for measure in on_snapshot for name in getattr(measure, "names", ())})
    workdir, first = Path(workdir), multihost.process_index() == 0
    if config.init_from and not saved(workdir):  # a run that goes on needs it no more
        transfer.find(config)

    # -- What the processes must have in common, and devices
    manifest = multihost.run_on_each(lambda: find_release(config))
    if multihost.process_count() > 1:
        multihost.check_same(record.shared_facts(config, manifest))
    network = NETWORKS[config.network]
    mesh = mesh_lib.of_config(config, network.size)
    multihost.check_devices(mesh)
    multihost.run_on_each(lambda: record.check_resume(workdir, config, manifest))

    with (
        held(workdir),
        Checkpoints(workdir, manifest.fingerprint, keep_last=config.checkpoint.keep_last) as checkpoints,
    ):
        # -- Data: where the cache is shared, process 0 fills it and the others find it
        loaded = multihost.run_on_each(lambda: load_training_splits(config, manifest) if first else None)
        loaded = multihost.run_on_each(lambda: loaded or load_training_splits(config, manifest))
        split, validation = loaded
        if choose_pipeline(config, split, mesh) == "tfdata":
            tfdata.check_shares(split.grades, config.data.sampling, multihost.process_count(), config.data.temperature)

        # -- Networks, optimizers, state
        generator, discriminator = build_networks(config)
        update, init = build.make_update(config, generator, discriminator)

        # -- Resume, or start: from another run's networks, or fresh
        if multihost.run_on_first(lambda: record.read(workdir) is None) and checkpoints.steps():
            raise UserError(f"{workdir}: has checkpoints but no {record.NAME}: restore it, or choose another --workdir")

        def begin():
            restored = checkpoints.restore(build.abstract_state(config, init, mesh))
            if restored is not None:
                return restored, []
            state = build.fresh_state(config, init, mesh)
            return transfer.start_from(config, state) if config.init_from else (state, [])

        state, taken = begin()
        first_step, last_step, restarts = int(state.step), steps(config.total_kimg, config), int(state.restarts)
        multihost.run_on_first(lambda: record.write(workdir, config, manifest, split.left_eye_share))

        # -- The compiled step
        step = train_step.compile_step(config, update, mesh, split, first_step)
        views = snapshot.Views(config, generator, mesh, split, validation, on_snapshot)
        log_every, snapshot_every = steps(config.log_kimg, config), steps(config.snapshot_kimg, config)
        with (
            curves.drawn(workdir) if first else contextlib.nullcontext(),
            Log(
                workdir,
                total_images=last_step * config.batch_size,
                first_step=first_step,
                batch_size=config.batch_size,
                epoch_images=len(split.grades),
                console=config.log.console,
            )
            if first
            else Quiet() as log,
            multihost.interruption() as interrupted,
        ):
            if first_step:
                log.say(f"resuming from step {first_step} ({first_step * config.batch_size / 1000:.1f} kimg)")
            else:
                for line in taken:
                    log.say(line)
                log.image("reals", views.reals(), 0)
                log.image(snapshot.fakes_name(0, config), views.fakes(state), 0)

            done = told = first_step  # steps dispatched, and steps told of
            pending = []  # metrics of the calls between, which may still be on the devices
            calls, stop = 0, False  # an interruption is told once: it is not forgotten where training goes back
            while done < last_step:
                try:
                    state, metrics = step(state)
                    pending.append(metrics)
                    done += step.steps
                    calls += 1
                    if calls == 1:
                        jax.block_until_ready(metrics)  # it compiled
                        log.say(f"first step after {time.monotonic() - start:.1f} s")
                        log.start_clock(done)
                    if len(pending) > AHEAD:
                        jax.block_until_ready(pending[-1 - AHEAD])
                    stop = interrupted(calls) or stop
                    due = done % snapshot_every == 0 or done == last_step
                    known = done if stop or due else done - AHEAD * step.steps
                    for point in range(told + step.steps, known + 1, step.steps):
                        if point % log_every and point < done:
                            continue
                        rows = _rows(jax.device_get(pending[: (point - told) // step.steps]))
                        del pending[: (point - told) // step.steps]
                        told, rate = point, log.read_clock(point)
                        divergence.check_metrics(rows, point)
                        measures = {}
                        if due and point == done:
                            log.image(snapshot.fakes_name(done, config), views.fakes(state), done)
                            if measures := views.measures(state):
                                log.say(f"{done * config.batch_size / 1000:.1f} kimg: {snapshot.told(measures)}")
                        log.scalars(point, rows, rate, measures | ({"restarts": restarts} if restarts else {}))
                    if due or stop:
                        divergence.check_state(state, done)
                        score = snapshot.score(config, measures, done) if due else None
                        if score is not None and score < float(state.best):
                            best = mesh_lib.everywhere(np.array(score, np.float32), mesh)
                            state = dataclasses.replace(state, best=best)
                        checkpoints.save(done, state, score=score, marked=due and _marked(done, config))
                        if due and config.on_collapse != "ignore":
                            warning = multihost.run_on_first(lambda: alarm.alarm(read_stats(workdir), config.loss.name))
                            if warning and config.on_collapse == "stop":
                                checkpoints.wait()
                                raise TrainingCollapsed(f"step {done}: stopped, as config.on_collapse says: {warning}")
                            if warning:
                                log.say(f"alarm at {done * config.batch_size / 1000:.1f} kimg: {warning}")
                        log.start_clock(done)
                    if stop:
                        checkpoints.wait()
                        log.say(f"interrupted: saved step {done}; the same command goes on from there")
                        break
                except TrainingDiverged as diverged:
                    checkpoints.wait()
                    if config.on_divergence == "stop" or restarts >= divergence.MOST:
                        raise diverged.in_the_end(restarts, workdir, config) from None
                    state, restarts = None, restarts + 1  # the broken one makes room
                    pending.clear()
                    state = divergence.restarted(begin()[0], restarts, mesh)
                    done = told = int(state.step)
                    step = step.starting_at(done)
                    log.go_back(done)
                    log.say(
                        f"{diverged}: back to step {done}, updates half as large from there on "
                        f"({restarts} of at most {divergence.MOST} times)"
                    )
    return state


def _rows(calls):
    """Metrics of calls, each float32 [steps] -> those of the updates, one by one."""
    return [{name: value[i] for name, value in call.items()} for call in calls for i in range(len(call["loss_d"]))]


def _marked(step, config):
    """Whether this snapshot is the first at or after a multiple of keep_every_kimg."""
    if not config.checkpoint.keep_every_kimg:
        return False
    every, between = steps(config.checkpoint.keep_every_kimg, config), steps(config.snapshot_kimg, config)
    before = (step - 1) // between * between
    return step // every > before // every
