"""Several processes that train one model: `jax.distributed` and `jax.experimental.multihost_utils`.

    with multihost.initialize(coordinator_address, num_processes, process_id):
        loop.train(config, workdir)

Every process runs the same program on its own devices, and `jax.devices()` is the devices of all. Every function below
is collective where it says so: all processes must call it, in the same order. A run of one process has no overhead.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from idrid_jax.errors import UserError

JOIN_TIMEOUT = 300.0  # seconds
HEARTBEAT_TIMEOUT = 60  # seconds after which JAX ends the other processes of one that is silent
LEAVE_TIMEOUT = 5.0  # seconds that a failing process waits for others that fail with the same error


def process_index() -> int:
    """This process's number, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of this run."""
    return jax.process_count()


# -- Start and end


@contextlib.contextmanager
def initialize(
    coordinator_address: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = JOIN_TIMEOUT,
    explain: Callable[[BaseException], tuple[str, int] | None] = lambda error: None,
) -> Iterator[None]:
    """Connect this process with the others of its run, before any other use of JAX's devices.

    Without arguments the launcher's environment is read by JAX (`find_cluster`); outside of any, nothing is done.
    An error that leaves the block prints a line and ends this process; the loss of one process ends all.

    Args:
      coordinator_address: HOST:PORT where process 0 listens.
      timeout: seconds to wait for the other processes; then one line is printed and the process exits with status 2.
      explain: returns the line and the exit status of an error, or None for one that keeps its traceback.

    Raises:
      UserError: if arguments or the environment are invalid.
    """
    arguments = find_cluster(coordinator_address, num_processes, process_id)
    if arguments is None or not _join(arguments, timeout):
        yield
        return
    try:
        yield
        multihost_utils.sync_global_devices("end of the run")
    except BaseException as error:
        _end(error, explain)
    jax.distributed.shutdown()


def find_cluster(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`; {} lets JAX detect them; None for a process on its own.

    Raises:
      UserError: where one or two of the three arguments are missing, or a value is invalid.
    """
    address = coordinator_address or None
    given = {"coordinator_address": address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        return {} if _launched_as_several() or _may_be_cluster() else None
    if missing:
        raise UserError(f"{' and '.join(missing)} is missing: all three are needed, or none under a known launcher")
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address {coordinator_address!r}: write HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id {process_id}: must be in 0..{num_processes - 1} (--num_processes less one)")
    if num_processes == 1:
        return None
    local = host in ("localhost", "127.0.0.1")
    if process_id == 0:
        _check_port_is_free(host if local else "", int(port))
    return given | ({"coordinator_bind_address": coordinator_address} if local else {})


def _check_port_is_free(host: str, port: int) -> None:
    """Raise UserError where this process cannot listen. JAX's own service may crash the process instead."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"--coordinator_address: cannot listen on port {port} ({error.strerror or error}); choose another port"
        ) from None


def launched_process_id() -> int:
    """Return this process's number by the variables that launchers document; 0 outside of any."""
    for count, index in (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")):
        if int(os.environ.get(count, 1)) > 1:
            return int(os.environ.get(index, 0))
    return int(os.environ.get("TPU_WORKER_ID", os.environ.get("JOB_COMPLETION_INDEX", 0)))


def _launched_as_several() -> bool:
    """Whether mpirun or srun started more than one process. Slurm's interactive shells are steps of one task."""
    return any(int(os.environ.get(name, 1)) > 1 for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def _may_be_cluster() -> bool:
    """Whether this may be a TPU slice or an indexed Kubernetes job, which JAX asks services about."""
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return True
    if "TPU_PROCESS_ADDRESSES" in os.environ or "TPU_WORKER_HOSTNAMES" in os.environ:
        return True
    return "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ  # set by JAX on a Cloud TPU VM


def _join(arguments: dict[str, Any], timeout: float) -> bool:
    """Initialize JAX's distributed service; returns whether there are other processes."""
    arguments = arguments | ({"cluster_detection_method": "deactivate"} if arguments else {})

    def give_up():  # JAX itself would abort with a stack trace
        _print(
            f"process {arguments.get('process_id', launched_process_id())}: after {timeout:g} s not all processes have "
            "connected: look at their output, or allow more time with --join_timeout"
        )
        os._exit(2)

    watch = threading.Timer(timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except Exception as error:
        if not arguments and isinstance(error, ValueError) and not _launched_as_several():
            return False  # JAX found no cluster
        raise UserError(
            f"JAX cannot connect the processes ({_brief(error)}): pass --coordinator_address, --num_processes and "
            "--process_id"
        ) from error
    finally:
        watch.cancel()
    return process_count() > 1


def _end(error: BaseException, explain) -> None:
    """Print why this process ends and end it; the others follow, as JAX notices."""
    status, lost = 1, False
    if isinstance(error, UserError):
        text, status = str(error), 2
    elif explained := explain(error):
        text, status = explained
    elif lost := _is_lost_process(error):
        text = (
            f"another process was lost (killed, or its machine): {_brief(error)}; the same command resumes from the "
            "newest checkpoint"
        )
    else:
        traceback.print_exc()
        text = f"{type(error).__name__}: {_brief(error)}"
    _print(text)
    if lost:
        time.sleep(2 if process_index() == 0 else 0)  # the others print their line before JAX's service ends with it
    else:  # waits for those that end with the same error
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(LEAVE_TIMEOUT)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(status)  # an ordinary exit would wait for lost processes


def _is_lost_process(error) -> bool:
    """Whether a collective operation failed. The CPU's (Gloo) also raise ValueError."""
    failed = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    return failed and "RESOURCE_EXHAUSTED" not in str(error)


def _brief(error) -> str:
    return " ".join(str(error).split())[:200]


def _print(text) -> None:
    os.write(2, f"idrid-jax: {text}\n".encode())


# -- Agreement


def gather(value: Any) -> list:
    """Return the values of all processes, by process. Collective. value: what JSON can hold."""
    if process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(_padded(data, sizes.max()))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def run_on_first(function: Callable[[], Any]) -> Any:
    """Return on all processes what `function` returns on process 0, which alone calls it. Collective.

    The value must be what JSON can hold. A UserError there is raised on all processes.
    """
    if process_count() == 1:
        return function()
    result, data = None, np.zeros(0, np.uint8)
    if process_index() == 0:
        result = _attempt(function)
        data = np.frombuffer(json.dumps(result).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    data = multihost_utils.broadcast_one_to_all(_padded(data, size))
    result = json.loads(data[:size].tobytes())
    if "error" in result:
        raise UserError(result["error"])
    return result["value"]


def run_on_each(function: Callable[[], Any]) -> Any:
    """Return what `function` returns on this process. Collective. A UserError of any process is raised on all."""
    if process_count() == 1:
        return function()
    result = _attempt(function)
    errors = gather(result.get("error"))
    for index, error in enumerate(errors):
        if error is not None:
            raise UserError(error if len(set(errors)) == 1 else f"process {index}: {error}")
    return result["value"]


def check_same(facts: dict[str, Any]) -> None:
    """Raise UserError on all processes, naming the field and the process, where one differs from process 0. Collective.

    facts: what must agree (configuration, release, versions, code revision): name -> what JSON can hold.
    """
    expected, *others = gather(facts)
    for index, found in enumerate(others, 1):
        for name in expected | found:
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"process {index} has {name} = {found.get(name)!r}, process 0 has {expected.get(name)!r}: start "
                    "all with the same command on the same installation and data"
                )


def check_devices(mesh: Mesh) -> None:
    """Raise UserError unless every process has as many devices in the mesh as the others."""
    counts = [0] * process_count()
    for device in mesh.devices.flat:
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        raise UserError(
            f"config.mesh uses {', '.join(map(str, counts))} devices of the {len(counts)} processes: all must use "
            "equally many; set config.mesh.data to auto for all devices"
        )


def _attempt(function) -> dict[str, Any]:
    try:
        return {"value": function()}
    except UserError as error:
        return {"error": str(error)}


def _padded(data, size) -> np.ndarray:
    """uint8 [n], n a power of two and at least 1024: every length would be compiled separately."""
    return np.pad(data, (0, max(1024, 1 << (int(size) - 1).bit_length()) - len(data)))


# -- Interruption


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """Within the block SIGTERM and the first Ctrl-C do not end the process; they make the yielded function return True.

    Call it after every training step with 1, 2, ... Any of several processes may receive the signal: it returns True
    on all of them after the same step. A second Ctrl-C raises KeyboardInterrupt.
    """
    several = process_count() > 1
    received = []

    def receive(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if several:
            signal.raise_signal(signal.SIGTERM)

    # With several processes JAX handles SIGTERM since `initialize`, and notifies the others
    signals = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    try:
        handlers = {number: signal.signal(number, receive) for number in signals}
    except ValueError:  # not the main thread, whose program handles signals
        handlers = {}
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda step: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
