"""Orbax checkpoints: the only file that knows Orbax, whose V1 API still moves.

A checkpoint holds arrays alone, at `workdir/checkpoints/STEP`. It becomes visible when it is whole, so a process killed
while it saves leaves the one before. Orbax does not notice a changed byte inside a chunk: a CRC-32 of all arrays is
kept with them. Several processes save and restore together; process 0 says what there is, and alone moves or removes.
"""

import asyncio
import contextlib
import dataclasses
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from idrid_jax.errors import UserError
from idrid_jax.training import multihost
from idrid_jax.training.run_dir import CHECKPOINTS as FOLDER
from idrid_jax.training.run_dir import UNREADABLE as SET_ASIDE
from idrid_jax.training.state import TrainState

TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's suffix of a checkpoint that is not whole


@dataclasses.dataclass(frozen=True)
class _Preserve(ocp.training.preservation_policies.PreservationPolicy):
    """Keeps the newest, those marked, and the one with the lowest score."""

    keep_last: int

    def should_preserve(self, checkpoints, *, context):
        scores = np.array([(info.metrics or {}).get("score", np.inf) for info in checkpoints])
        finite = np.flatnonzero(np.isfinite(scores))
        best = finite[np.argmin(scores[finite])] if len(finite) else None
        newest = len(checkpoints) - self.keep_last
        return [
            i >= newest or i == best or bool((info.metrics or {}).get("marked")) for i, info in enumerate(checkpoints)
        ]


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for the save under way."""

    def __init__(self, workdir: Path, fingerprint: str = "", *, keep_last: int = 3):
        """Leaves what is there alone until `save` or `restore`.

        fingerprint: of the data that the run is trained on, written with each checkpoint; one of other data is refused.
        keep_last: newest ones kept, beside the marked and the best.
        """
        self._workdir = Path(workdir)
        self._fingerprint = fingerprint
        self._leftovers = multihost.process_index() == 0  # of a process killed while it saved: still to be removed
        self._failed = False  # whether a failed save has been raised
        # Orbax logs every step of its own, and tracebacks of errors that it also raises; some it leaves to asyncio
        logging.set_verbosity(logging.FATAL)
        asyncio.log.logger.setLevel("CRITICAL")
        context = ocp.Context()
        context.array.saving.use_compression = False  # saves 8 % of the bytes, and takes longer than all of the rest
        self._checkpointer = ocp.training.Checkpointer(
            (self._workdir / FOLDER).absolute(),
            context=context,
            preservation_policy=_Preserve(keep_last),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        reported = self._failed
        try:
            with self._saving("the last one"):
                self._checkpointer.close()
        except UserError as failure:
            if error is None:
                raise
            if not reported:
                print(failure, file=sys.stderr)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, oldest first."""
        return multihost.run_on_first(self._steps)

    def _steps(self):
        return sorted(info.step for info in self._checkpointer.checkpoints)

    def chosen(self) -> int | None:
        """The step with the lowest score; None where none has one."""
        scores = {info.step: (info.metrics or {}).get("score", np.inf) for info in self._checkpointer.checkpoints}
        best = min(scores, key=scores.get, default=None)
        return best if best is not None and np.isfinite(scores[best]) else None

    def save(self, step: int, state: Any, *, score: float | None = None, marked: bool = False) -> None:
        """Saves behind the caller's back; returns once the arrays are copied, so that they may be donated.

        score: of the measure that chooses the best, lower is better. marked: kept for good.
        Raises UserError where the disk is full or cannot be written.
        """
        metrics = {"marked": int(marked)} | ({} if score is None else {"score": float(score)})
        with self._saving(f"step {step}"):
            self._checkpointer.wait()  # errors of the save before come out here
            # Orbax would remove them when it opens, and with them what another process is saving
            for left in (self._workdir / FOLDER).glob(f"*{TEMPORARY}") if self._leftovers else ():
                shutil.rmtree(left)
            self._leftovers = False
            self._checkpointer.save_async(
                step,
                {"state": state, "crc32": _crc32(state)},
                metrics=metrics,
                force=True,
                overwrite=step in self.steps(),
                custom_metadata={"fingerprint": self._fingerprint},
            )

    def wait(self) -> None:
        """Until the save under way is on the disk. Raises UserError as `save`."""
        with self._saving("the last one"):
            self._checkpointer.wait()

    def restore(self, like: Any, *, step: int | None = None) -> Any | None:
        """The newest readable checkpoint (or that of `step`) with the structure and the shardings of `like`; None where
        there is none. A TrainState from before `restarts` were counted comes with 0.

        like: a pytree of arrays or jax.ShapeDtypeStruct with shardings. An unreadable checkpoint is reported on
        stderr, moved to `workdir/unreadable_checkpoints`, and the one before is taken. Raises UserError, and moves
        nothing, where none is readable, or the checkpoint is of other data.
        """
        unreadable = {}
        for candidate in [step] if step is not None else self.steps()[::-1]:
            state, reasons = self._load_everywhere(candidate, like)
            if reasons:
                unreadable[candidate] = reasons[0]
                continue
            for damaged, reason in unreadable.items():
                aside = multihost.run_on_first(lambda: str(self._set_aside(damaged)))
                self._checkpointer.reload()
                if multihost.process_index() == 0:
                    print(
                        f"checkpoint of step {damaged} is unreadable ({reason}): moved to {aside}, taking the one "
                        "before",
                        file=sys.stderr,
                    )
            return state
        if step is not None:
            raise UserError(f"{self._workdir / FOLDER / str(step)}: unreadable: {unreadable[step]}")
        if unreadable:
            raise UserError(
                f"{self._workdir}: none of its checkpoints is readable ({next(iter(unreadable.values()))}): "
                "start again in another --workdir"
            )
        return None

    @contextlib.contextmanager
    def _saving(self, what):
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore raises ValueError for what the system refuses
            if not isinstance(error, OSError) and "os_error" not in str(error):
                raise
            self._failed = True
            raise UserError(
                f"{self._workdir / FOLDER}: cannot save {what}: {_brief(error, 300)}; "
                "make room or choose another --workdir"
            ) from error

    def _load_everywhere(self, step, like):
        """-> the state, and why it cannot be read, by each process that cannot."""
        state = None

        def load():
            nonlocal state
            try:
                state = self._load(step, like)
            except (KeyboardInterrupt, MemoryError, UserError):
                raise
            except Exception as error:  # Orbax raises what it happens to stumble over
                return _brief(error)

        reasons = multihost.gather(multihost.run_on_each(load))
        return state, [reason for reason in reasons if reason is not None]

    def _load(self, step, like):
        if step not in self._steps():
            self._checkpointer.reload()  # on another host, whose view of the folder is older
        about = self._checkpointer.metadata(step)
        # TrainState's count of restarts came later than some runs: those never went back
        counted = not isinstance(like, TrainState) or "restarts" in about.metadata["state"]
        wanted = like if counted else dataclasses.replace(like, restarts={})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
        loaded = self._checkpointer.load(step, {"state": abstract, "crc32": np.zeros((), np.uint32)})
        stored, found = int(loaded["crc32"]), int(_crc32(loaded["state"]))
        if stored and found and stored != found:  # 0: a part was on another process
            raise ValueError("its checksum does not match its arrays")
        trained_on = (about.custom_metadata or {}).get("fingerprint", "")
        if self._fingerprint and trained_on and trained_on != self._fingerprint:
            raise UserError(
                f"{self._workdir / FOLDER / str(step)}: trained on release {trained_on[:12]}, not on "
                f"{self._fingerprint[:12]}: choose another --workdir"
            )
        if counted:
            return loaded["state"]
        none = jax.make_array_from_callback((), like.restarts.sharding, lambda _: np.zeros((), np.int32))
        return dataclasses.replace(loaded["state"], restarts=none)

    def _set_aside(self, step):
        target = self._workdir / SET_ASIDE / str(step)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        if (self._workdir / FOLDER / str(step)).exists():  # a run that goes on may have dropped it meanwhile
            shutil.move(self._workdir / FOLDER / str(step), target)
        return target


def _crc32(state) -> np.ndarray:
    """uint32 [], of all arrays in order; 0 where another process holds a part that is not here."""
    crc = 0
    for leaf in jax.tree.leaves(state):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.zeros((), np.uint32)
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        crc = zlib.crc32(np.ascontiguousarray(jax.device_get(whole)), crc)
    return np.array(crc, np.uint32)


def _brief(error: Exception, length: int = 120) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:length]
