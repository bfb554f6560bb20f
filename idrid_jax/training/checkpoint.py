"""Checkpoints: the only file that knows Orbax, whose V1 API still moves; and reading a run from its checkpoints.

A checkpoint holds arrays alone, at `checkpoints/STEP` of the run directory. It becomes visible when it is whole, so a
process that is killed while it saves leaves the previous one. Orbax does not notice a changed byte in a chunk, so a
CRC-32 of all arrays is saved with them. Several processes save and restore together; process 0 lists, moves and
removes.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from orbax.checkpoint import v1 as ocp

from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, transfer
from idrid_jax.training import multihost
from idrid_jax.training.run_dir import RunDir, RunRecord, read_record
from idrid_jax.training.state import TrainState, single_device_state

TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's suffix of a checkpoint that is not whole
FILE_MISSING = "os_error_code='2'"  # in TensorStore's errors


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for the save in progress."""

    def __init__(self, workdir: Path, fingerprint: str = "", *, keep_last: int = 3, keep_every_steps: int = 0):
        """Open the folder; nothing in it changes before `save` or `restore`.

        Args:
          workdir: the run directory.
          fingerprint: of the training data, saved with each checkpoint; a checkpoint of other data is refused.
          keep_last: newest checkpoints to keep.
          keep_every_steps: keep every checkpoint at a multiple of it too; 0: none. The best one is always kept.
        """
        self._run_dir = RunDir(workdir)
        self._fingerprint = fingerprint
        self._remove_partial = multihost.process_index() == 0  # of a process that was killed while it saved
        self._save_failed = False  # a failed save has been raised
        _silence_orbax()
        policies = ocp.training.preservation_policies
        keep = [
            policies.LatestN(keep_last),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["score"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        context = ocp.Context()
        context.array.saving.use_compression = False  # saves 8 % of the bytes and takes longer than all of the rest
        # Process 0 writes all of a replicated array: CPUs with other numbers of cores round their replicas differently
        context.array.saving.use_replica_parallel = False
        self._checkpointer = ocp.training.Checkpointer(
            self._run_dir.checkpoints.absolute(),
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        reported = self._save_failed
        try:
            with self._save_errors("the last one"):
                self._checkpointer.close()
        except UserError as failure:
            if error is None:
                raise
            if not reported:
                print(failure, file=sys.stderr)

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, oldest first."""
        return multihost.run_on_first(self._steps)

    def _steps(self):
        return sorted(info.step for info in self._checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """Return the step with the lowest score; None if no checkpoint has one."""
        scores = {info.step: info.metrics["score"] for info in self._checkpointer.checkpoints if info.metrics}
        return min(scores, key=scores.get, default=None)

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Save in the background; return once the arrays are copied, so that they may be donated.

        score: of the metric that chooses the best checkpoint, lower is better; one that is not finite does not count.
        Raises UserError if the disk is full or cannot be written.
        """
        with self._save_errors(f"step {step}"):
            self._checkpointer.wait()  # raises the errors of the previous save
            # Orbax would remove partial checkpoints when it opens the folder, and with them another process's save
            if self._remove_partial:
                for partial in self._run_dir.checkpoints.glob(f"*{TEMPORARY}"):
                    shutil.rmtree(partial)
                self._remove_partial = False
            self._checkpointer.save_async(
                step,
                {"state": state, "crc32": _crc32(state)},
                metrics={"score": float(score)} if score is not None and math.isfinite(score) else None,
                force=True,
                overwrite=step in self.steps(),
                custom_metadata={"fingerprint": self._fingerprint},
            )

    def wait(self) -> None:
        """Wait until the save in progress is on the disk. Raises UserError as `save` does."""
        with self._save_errors("the last one"):
            self._checkpointer.wait()

    def restore(self, like: Any, *, step: int | None = None) -> Any | None:
        """Return the newest intact checkpoint, or that of `step`; None if there is none.

        A damaged checkpoint is reported on stderr and moved to `unreadable_checkpoints/`, and the previous one is
        restored. With `step` nothing is moved.

        Args:
          like: a pytree of arrays or jax.ShapeDtypeStruct with shardings: the structure and placement of the result.
          step: of the checkpoint to restore.

        Raises UserError if no checkpoint is intact (nothing is moved then), or a checkpoint is of other data. Errors of
        the file system and lack of memory are raised as they are.
        """
        damaged = {}
        for candidate in [step] if step is not None else self.steps()[::-1]:
            state, reason = self._load_on_all(candidate, like)
            if reason is None:
                for bad_step, bad_reason in damaged.items():
                    self._set_aside(bad_step, bad_reason)
                return state
            damaged[candidate] = reason
        if step is not None:
            raise UserError(f"{self._run_dir.checkpoints / str(step)}: unreadable: {damaged[step]}")
        if damaged:
            raise UserError(
                f"{self._run_dir.path}: none of its checkpoints is readable ({next(iter(damaged.values()))}): "
                "start again in another --workdir"
            )
        return None

    @contextlib.contextmanager
    def _save_errors(self, what):
        """Raise what the operating system refuses as UserError."""
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore raises ValueError for what the system refuses
            if not isinstance(error, OSError) and "os_error" not in str(error):
                raise
            self._save_failed = True
            raise UserError(
                f"{self._run_dir.checkpoints}: cannot save {what}: {_first_line(error, 300)}; "
                "make room or choose another --workdir"
            ) from error

    def _load_on_all(self, step, like) -> tuple[Any, str | None]:
        """Return the state and None, or None and why the checkpoint is damaged for one of the processes."""
        state = reason = None
        try:
            state = self._load(step, like)
        except DamagedCheckpoint as error:
            reason = str(error)
        reasons = [reason for reason in multihost.gather(reason) if reason is not None]
        return (None, reasons[0]) if reasons else (state, None)

    def _load(self, step, like):
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            if step not in self._steps():
                self._checkpointer.reload()  # this host's view of the folder may be older
            loaded = self._checkpointer.load(step, {"state": abstract, "crc32": np.zeros((), np.uint32)})
            metadata = self._checkpointer.metadata(step).custom_metadata or {}
        except Exception as error:
            if _is_damage(error):
                raise DamagedCheckpoint(_first_line(error)) from error
            raise
        saved_crc, crc = int(loaded["crc32"]), int(_crc32(loaded["state"]))
        if saved_crc and crc and saved_crc != crc:  # 0: a part was on another process
            raise DamagedCheckpoint("its checksum does not match its arrays")
        trained_on = metadata.get("fingerprint", "")
        if self._fingerprint and trained_on and trained_on != self._fingerprint:
            raise UserError(
                f"{self._run_dir.checkpoints / str(step)}: trained on release {trained_on[:12]}, not on "
                f"{self._fingerprint[:12]}: choose another --workdir"
            )
        return loaded["state"]

    def _set_aside(self, step: int, reason: str) -> None:
        target = multihost.run_on_first(lambda: self._move(step))
        self._checkpointer.reload()
        if multihost.process_index() == 0:
            print(
                f"checkpoint of step {step} is unreadable ({reason}): moved to {target}, restoring the previous one",
                file=sys.stderr,
            )

    def _move(self, step) -> str:
        source, target = (folder / str(step) for folder in _folders(self._run_dir))
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        if source.exists():  # a training run may have dropped it in the meantime
            shutil.move(source, target)
        return str(target)


class DamagedCheckpoint(ValueError):
    """The content of a checkpoint is not what was saved."""


class LoadedRun(NamedTuple):
    """A run's record, the state of one checkpoint, and the best (None without scores) and the last step there."""

    record: RunRecord
    state: TrainState
    best_step: int | None
    last_step: int


def read_run(
    workdir: Path | str, *, step: int | None = None, sharding: jax.sharding.Sharding | None = None
) -> LoadedRun:
    """Return a run with the state of a checkpoint: of `step`, else the best one, else the newest.

    Nothing is changed, as another process may be training there: a damaged checkpoint is reported on stderr and stays,
    and the newest intact one is read. The best is the one with the lowest score (`config.checkpoint.best`).

    sharding: of the arrays (None: whole on the first device).
    Raises UserError if there is no run, its configuration is invalid, or no checkpoint (of that step) can be read.
    """
    record = read_record(workdir)
    run_dir = RunDir(workdir)
    like = single_device_state(record.config)
    if sharding is not None:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    unreadable = []
    with Checkpoints(run_dir.path, record.fingerprint) as checkpoints:
        steps, best = checkpoints.steps(), checkpoints.best_step()
        if step is not None and step not in steps:
            available = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{run_dir.path}: no checkpoint of step {step}; available: {available}")
        newest_first = sorted(steps, key=lambda candidate: (candidate == best, candidate), reverse=True)
        for candidate in newest_first if step is None else [step]:
            try:
                state = checkpoints.restore(like, step=candidate)
            except UserError as error:
                unreadable.append(str(error))
                continue
            for message in unreadable:
                print(f"{message}; reading step {candidate}", file=sys.stderr)
            return LoadedRun(record, state, best, steps[-1])
    kimg = f"config.snapshot_kimg = {record.config.snapshot_kimg:g}"
    raise UserError(
        unreadable[0] if unreadable else f"{run_dir.path}: no checkpoint yet: train until the first snapshot ({kimg})"
    )


def _folders(run_dir: RunDir) -> tuple[Path, Path]:
    return run_dir.checkpoints, run_dir.unreadable_checkpoints


def _is_damage(error: Exception) -> bool:
    """Return whether an error that Orbax raised while loading means damaged content: a format error or a missing file.

    Orbax and TensorStore have no type for damage, so it is any ValueError or KeyError of theirs, except those that name
    an error of the operating system or lack of memory. Nothing is lost if it was none: the checkpoint is only moved,
    after another one has been restored, and stays where it is if none is readable.
    """
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)
    text = str(error)
    refused = "RESOURCE_EXHAUSTED" in text or ("os_error" in text and FILE_MISSING not in text)
    return isinstance(error, ValueError | KeyError) and not refused


def _crc32(state) -> np.ndarray:
    """CRC-32 of all arrays in order, uint32 []; 0 if a part is on another process."""
    crc = 0
    for leaf in jax.tree.leaves(state):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.zeros((), np.uint32)
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        crc = zlib.crc32(np.ascontiguousarray(jax.device_get(whole)), crc)
    return np.array(crc, np.uint32)


def _first_line(error: Exception, length: int = 120) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


@functools.cache
def _silence_orbax() -> None:
    """Drop log records of Orbax, which logs each of its steps, and tracebacks of errors that it also raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not _is_from_orbax(record))


def _is_from_orbax(record: logging.LogRecord) -> bool:
    if "orbax" in record.pathname:
        return True
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
        if "orbax" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


# -- Starting from another run's networks

MIN_SHARE = 0.1  # of the parameters must come from the other run; with fewer this would be training from scratch


def find_source(config: ml_collections.ConfigDict) -> None:
    """Raise UserError if `config.init_from` is not a run; early, as `init_from_run` needs a compiled state."""
    with _naming_init_from():
        read_record(config.init_from)


def init_from_run(config: ml_collections.ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """Replace the layers of a fresh state that fit the networks of the run `config.init_from`.

    Parameters, batch statistics and the moving average are copied; what does not fit, the optimizers and the progress
    stay fresh. Returns the state, and lines that say what was copied.

    Raises UserError if `read_run` does, if the run's network is of another family, or if hardly anything of it fits.
    """
    with _naming_init_from():
        record, source, *_ = read_run(config.init_from, sharding=state.step.sharding)
    fits = [
        transfer.fit((fresh.params, fresh.stats), (trained.params, trained.stats), coarsest_last=network == "d")
        for network, fresh, trained in (("g", state.g, source.g), ("d", state.d, source.d))
    ]
    _check_fits(config, record.config, fits)
    networks = {}
    for network, found in zip("gd", fits):
        fresh, trained = getattr(state, network), getattr(source, network)
        copy = functools.partial(transfer.copy_fitting, found=found, coarsest_last=network == "d")
        networks[network] = dataclasses.replace(
            fresh, params=copy(fresh.params, trained.params), stats=copy(fresh.stats, trained.stats)
        )
    ema = {}
    if config.ema_kimg:
        ema = transfer.copy_fitting(state.ema, source.sampling_params, fits[0], coarsest_last=False)
        ema = jax.tree.map(jnp.copy, ema)  # not the arrays of g, which are donated too
    start = dataclasses.replace(state, **networks, ema=ema)
    shardings = jax.tree.map(lambda x: x.sharding, state)  # the other run's may differ
    return jax.jit(lambda state: state, out_shardings=shardings)(start), [_describe_fits(config, record.config, fits)]


@contextlib.contextmanager
def _naming_init_from():
    try:
        yield
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error


def _check_fits(config, other, fits) -> None:
    same_family = NETWORKS[config.network].family == NETWORKS[other.network].family
    if same_family and sum(found.values for found in fits) >= MIN_SHARE * sum(found.all_values for found in fits):
        return
    adjustable = "max_channels" in NETWORKS[config.network].options
    if same_family and adjustable and other.model.max_channels != config.model.max_channels:
        advice = f"set config.model.max_channels to {other.model.max_channels}, as it has"
    else:
        family = [name for name, network in NETWORKS.items() if network.family == NETWORKS[config.network].family]
        advice = f"name a run of {config.network if same_family else ' or '.join(family)}"
    raise UserError(f"config.init_from = {config.init_from!r}: {_describe_fits(config, other, fits)}: {advice}")


def _describe_fits(config, other, fits) -> str:
    arrays, all_arrays = (sum(getattr(found, name) for found in fits) for name in ("arrays", "all_arrays"))
    source = f"from {config.init_from} ({other.network})"
    if arrays == all_arrays:
        return f"{source}: all {arrays} arrays"
    named = (("generator", fits[0].names()), ("discriminator", fits[1].names()))
    parts = "; ".join(f"{network}: {', '.join(names)}" for network, names in named if names)
    return f"{source}: {arrays} of {all_arrays} arrays of {config.network} fit" + (f" ({parts})" if parts else "")
