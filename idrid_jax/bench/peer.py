"""PyTorch as the other side of `bench step`, in its own process so that threads and memory do not interfere.

`Peer` starts `python -m idrid_jax.bench.peer`, sends one JSON object per line and reads one answer per line. The parent
starts each round, so that rounds of both sides are interleaved.
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
VARIANTS = ("eager", "compile")  # ratio_to_peer uses the faster


class PeerError(Exception):
    """A failure in the peer's process, as one line."""


def check_peer(peer: str) -> None:
    """Raise UserError if a peer is unknown or not installed."""
    if peer not in PEERS:
        raise UserError(f"--peer {peer}: {suggest_name(peer, PEERS)}")
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"--peer {peer}: PyTorch is not installed: pip install 'idrid_jax[peer]' or bash launch/install.sh peer"
        )


def check_loss(peer: str, loss: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Raise UserError if `config.loss` has anything but the default loss and label smoothing, which the peer lacks."""
    for name, value in loss.items():
        if name != "label_smoothing" and value != plain[name]:
            raise UserError(
                f"--peer {peer}: supports the default loss only, not config.loss.{name} = {value!r}; omit --peer"
            )


class Peer:
    """PyTorch's process. Use it as a context manager, which ends the process.

    Every method raises PeerError if the process reports a failure or has ended.
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
        with contextlib.suppress(BrokenPipeError):  # unread requests of a process that has ended
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def start(self, threads: int, device: str) -> dict[str, Any]:
        """Set PyTorch up on "cpu" or "cuda"; return its version, device and threads."""
        return self._ask("start", threads=threads, device=device)

    def make(self, variant: str, options: dict[str, Any], photographs: int) -> float:
        """Build the update of a variant, run it twice, and return the seconds of these two steps."""
        return self._ask("make", variant=variant, options=options, photographs=photographs)["seconds"]

    def run(self, variant: str, steps: int) -> float:
        """Return the seconds of `steps` updates, including the device's work."""
        return self._ask("run", variant=variant, steps=steps)["seconds"]

    def drop(self) -> None:
        """Release all updates and their memory."""
        self._ask("drop")

    def _ask(self, do: str, **what) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(self._failure())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _failure(self) -> str:
        """Return why the process ended."""
        status = self._process.wait()
        if status < 0:
            reason = f"ended by {signal.Signals(-status).name}"
            return reason + (", out of memory?" if -status == signal.SIGKILL else "")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"ended with status {status}"


def main() -> None:
    """Answer the parent's requests until it closes the pipe."""
    if not runtime.has_accelerator():
        runtime.keep_freed_memory()  # like our side
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of PyTorch and its compilers must not reach the pipe of answers
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # any: the parent reports it
            answer = {"error": f"{type(error).__name__}: {_first_line(str(error))}"}
        print(json.dumps(answer), file=answers, flush=True)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


class _Worker:
    """Answers requests; its methods are those of `Peer`."""

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
