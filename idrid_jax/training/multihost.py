"""Several processes, one run: who this one is among them, and what they must have in common.

    with processes.joined(coordinator_address, num_processes, process_id, timeout=300):
        loop.train(config, workdir)

Each process runs the same program on its own devices, which make up one mesh. Who they are comes from the launcher, by
JAX's own detection (Slurm's srun, Open MPI's mpirun, TPU pods, Kubernetes), or from the three arguments.
"""

import contextlib
import dataclasses
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from idrid_jax import config as config_lib
from idrid_jax.data.manifest import Manifest
from idrid_jax.errors import UserError
from idrid_jax.training.peers import Alone, Peers, split_address

JOIN_TIMEOUT = 300.0  # seconds
VERDICT = 10.0  # seconds in which the loss of a peer is told, after the error that it gives in a collective
MAY_DIFFER = ("data.data_dir", "data.release", "log.console")  # a host's own; the release is compared by its content

_current: Alone = Alone()


@dataclasses.dataclass(frozen=True)
class Place:
    """This process's place. `devices`: ids of the local ones that are its own; None: all that its host has."""

    coordinator_address: str
    num_processes: int
    process_id: int
    devices: list[int] | None = None


def current() -> Alone:
    """The processes of this run: those that `joined` met, else this one alone."""
    return _current


def place(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> Place | None:
    """Where the arguments, or else the launcher's environment, put this process; None: it runs alone.

    Raises UserError for some of the arguments without the others, and for an environment that JAX cannot read.
    """
    given = {
        "coordinator_address": coordinator_address or None, "num_processes": num_processes, "process_id": process_id,
    }  # fmt: skip
    if any(value is not None for value in given.values()):
        missing = [f"--{name}" for name, value in given.items() if value is None]
        if missing:
            raise UserError(f"{' and '.join(missing)} is missing: the three go together, or the launcher tells all")
        split_address(coordinator_address)
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id {process_id}: must be in 0..{num_processes - 1} (--num_processes less one)")
        return Place(coordinator_address, num_processes, process_id) if num_processes > 1 else None
    return _detected()


def _detected() -> Place | None:
    # An interactive step of Slurm, such as salloc's shell, has the variables of a job of many tasks and is one
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1" and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return None
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks; it has no public name

    in_job = "KUBERNETES_SERVICE_HOST" not in os.environ or "JOB_COMPLETION_INDEX" in os.environ
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(JOIN_TIMEOUT)
        )
    except Exception as error:  # whatever a launcher's environment lacks
        if not in_job:  # a pod of no indexed job is alone
            return None
        raise UserError(
            f"the launcher's environment cannot be read ({' '.join(str(error).split())[:200]}): give "
            "--coordinator_address, --num_processes and --process_id"
        ) from error
    address, count, index, devices = found
    return Place(address, count, index, list(devices) if devices else None) if count and count > 1 else None


@contextlib.contextmanager
def joined(
    where: Place | None,
    *,
    timeout: float = JOIN_TIMEOUT,
    explain: Callable[[BaseException], tuple[str, int] | None] = lambda error: None,
) -> Iterator[Alone]:
    """Within the block this process is one of its run's, and `jax.devices()` are those of all. Before any other use of
    JAX's devices.

    An error that leaves the block ends all processes, with a line on each: where `explain` makes one of it (and its
    exit status), without a traceback. So does the death of a process: within seconds, by name.
    Raises UserError where the others are not there within `timeout` seconds. Without a place it does nothing.
    """
    global _current
    if where is None:
        yield _current
        return
    peers = Peers(where.coordinator_address, where.process_id, where.num_processes, timeout)
    try:
        _join_jax(peers, where, timeout)
        _current = peers
        yield peers
        peers.end()
    except BaseException as error:
        told = (str(error), 2) if isinstance(error, UserError) else explain(error)
        if told is None:
            peers.await_loss(VERDICT)
            traceback.print_exc()
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", 1
        peers.fail(*told)
    finally:
        _current = Alone()


def _join_jax(peers, where, timeout):
    """JAX's own service gets a port that process 0 finds free; the known one is the peers'."""
    import jax

    host, _ = split_address(where.coordinator_address)
    port = peers.first("port", _free_port)
    local = {"coordinator_bind_address": f"127.0.0.1:{port}"} if host in ("localhost", "127.0.0.1") else {}
    jax.distributed.initialize(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        where.num_processes,
        where.process_id,
        where.devices,
        cluster_detection_method="deactivate",  # nothing is left to detect
        initialization_timeout=int(timeout),
        **local,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def check_same(config: ml_collections.ConfigDict, find: Callable[[], Manifest]) -> Manifest:
    """What `find` returns, a prepared release, after all processes have compared versions, configuration and release.

    Raises UserError on all where one differs from process 0, naming it and the field, or where `find` fails on one.
    """
    if _current.count == 1:
        return find()
    from idrid_jax.training import record

    found: list[Manifest] = []

    def facts() -> dict[str, Any]:
        found.append(find())
        fields = {f"config.{name}": value for name, value in config_lib.fields(config) if name not in MAY_DIFFER}
        release = f"{found[0].fingerprint[:12]} ({found[0].name})"
        return {**record.versions(), "revision": record.revision(), "release": release, **fields}

    wanted, *others = _current.gather("start", facts, timeout=_current.timeout)
    for index, theirs in enumerate(others, 1):
        for name in wanted | theirs:
            if wanted.get(name) != theirs.get(name):
                raise UserError(
                    f"process {index} has {name} = {theirs.get(name)!r}, process 0 has {wanted.get(name)!r}: start all "
                    "with the same command on the same installation and data"
                )
    return found[0]


def check_devices(mesh) -> None:
    """Raises UserError unless each process has as many devices in the mesh as the others."""
    import jax

    if jax.process_count() != _current.count:
        raise UserError("jax.distributed was initialized by other code: train within training.processes.joined")
    counts = [0] * _current.count
    for device in mesh.devices.flat:
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        raise UserError(
            f"config.mesh takes {', '.join(map(str, counts))} devices of the {_current.count} processes: each must "
            "give as many; take config.mesh.data = -1 for all"
        )
