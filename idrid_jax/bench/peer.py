"""The peer in a process of its own, so that neither runtime's threads or memory are in the other's way.

    python -m idrid_jax.bench.peer      what `Peer` starts; one JSON object a line on stdin, its answer on stdout

The parent says when each round begins, so that rounds take turns with ours.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from idrid_jax import runtime
from idrid_jax.errors import UserError, suggest_name

PEERS = ("torch",)
VARIANTS = ("eager", "compile")  # the better counts


class PeerError(Exception):
    """What went wrong in the peer's process, in one line."""


def check(peer: str) -> None:
    """Raises UserError for an unknown peer, and for one that is not installed."""
    if peer not in PEERS:
        raise UserError(f"--peer {peer}: {suggest_name(peer, PEERS)}")
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"--peer {peer}: PyTorch is not installed: pip install 'idrid_jax[peer]' or bash launch/install.sh peer"
        )


def check_loss(peer: str, loss: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raises UserError for a `config.loss` that is not the default's but for the smoothing, which is all that the peer
    has: its times would be of something else."""
    for name, value in loss.items():
        if name != "label_smoothing" and value != plain[name]:
            raise UserError(f"--peer {peer}: it has binary cross-entropy alone, not config.loss.{name} = {value!r}")


class Peer:
    """PyTorch's side of the comparison. Use it as a context manager: the process ends with it.

    Every method raises PeerError where the process says that it failed, or has ended.
    """

    def __init__(self):
        self._errors = tempfile.TemporaryFile(mode="w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "idrid_jax.bench.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(BrokenPipeError):  # what was not read, where the process has ended
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def start(self, threads: int, device: str) -> dict[str, Any]:
        """Sets PyTorch up on "cpu" or "cuda" -> its version, device and threads."""
        return self._ask("start", threads=threads, device=device)

    def make(self, variant: str, options: dict[str, Any], photographs: int) -> float:
        """Makes the update anew and runs it twice; the variant of another update is gone. -> seconds."""
        return self._ask("make", variant=variant, options=options, photographs=photographs)["seconds"]

    def run(self, variant: str, steps: int) -> float:
        """-> seconds that so many updates took, the device's work included."""
        return self._ask("run", variant=variant, steps=steps)["seconds"]

    def drop(self) -> None:
        """Lets go of every update and its memory."""
        self._ask("drop")

    def _ask(self, do: str, **what) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        if status < 0:
            reason = f"ended by {signal.Signals(-status).name}"
            return reason + (", out of memory?" if -status == signal.SIGKILL else "")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"ended with status {status}"


def main() -> None:
    """Answers the parent until it closes the pipe."""
    runtime.keep_freed_memory()  # as our side does
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what PyTorch and its compilers print must not be taken for an answer
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the compiler's, the allocator's, any: the parent says it
            answer = {"error": f"{type(error).__name__}: {_first_line(str(error))}"}
        print(json.dumps(answer), file=answers, flush=True)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


class _Worker:
    def __init__(self):
        self.updates = {}

    def start(self, threads: int, device: str) -> dict[str, Any]:
        import torch

        from idrid_jax.bench import torch_step

        self.step, self.device = torch_step, torch_step.prepare(threads, device)
        name = torch.cuda.get_device_name() if device == "cuda" else device
        return {"torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}

    def make(self, variant: str, options: dict[str, Any], photographs: int) -> dict[str, Any]:
        options = self.step.Options(**options)
        update = self.step.Update(options, self.device, compiled=variant == "compile")
        batches = self.step.Batches(options, photographs, self.device)
        self.updates[variant] = update, batches
        return self.run(variant, 2)

    def run(self, variant: str, steps: int) -> dict[str, Any]:
        update, batches = self.updates[variant]
        return {"seconds": self.step.seconds(update, batches, steps)}

    def drop(self) -> dict[str, Any]:
        self.updates.clear()
        self.step.release(self.device)
        return {}


if __name__ == "__main__":
    main()
