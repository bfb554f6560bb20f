"""The devices that a plan is for: a described TPU slice, or devices of this machine."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from idrid_jax.bench import memory, report
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.plan import cache
from idrid_jax.plan import compile as compile_lib
from idrid_jax.plan.topology import Topology, compiler_version, parse_topology, topology_devices
from idrid_jax.training import sharding


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Attributes:
      name: "v5e:16x16" or "8 x cpu".
      num_chips: number of devices.
      memory_limit: bytes that a program can use on each; None if unknown.
      compiler: name and version.
      devices: returns the devices; called only to compile.
      topology: the TPU slice; None for this machine's devices.
      effort: of the compiler, a key of `compile.EFFORTS`.
    """

    name: str
    num_chips: int
    memory_limit: int | None
    compiler: str
    devices: Callable[[], list[jax.Device]]
    topology: Topology | None = None
    effort: str = "full"

    @property
    def unit(self) -> str:
        """What one of the devices is called."""
        return "chip" if self.topology else "device"

    def mesh(self, config: ml_collections.ConfigDict) -> Mesh:
        """Return the mesh of `config.mesh`. Raises UserError if it does not fit the devices, batch or image."""
        return sharding.mesh_from_config(config, NETWORKS[config.network].size, devices=self.devices())

    def compile_stats(self, config: ml_collections.ConfigDict, *, use_cache: bool = True) -> compile_lib.CompiledStats:
        """Return the compiler's figures for the train step of `config`, from disk if they are cached.

        Raises UserError if the mesh does not fit.
        """
        key = cache.cache_key(config, self.name, self.compiler, self.effort)
        step = f"{config.network}, batch {config.batch_size}, {self.name}"
        stats = cache.load(key) if use_cache else None
        if stats is not None:
            report.log(f"{step}: {_outcome(stats)} (cached)")
            return stats
        mesh = self.mesh(config)
        slow = " at full effort, which takes minutes" if self.topology and self.effort == "full" else ""
        report.log(f"{step}: compiling{slow}")
        stats = compile_lib.compile_stats(config, mesh, self.effort)
        cache.store(key, stats)
        report.log(f"{step}: {_outcome(stats)} (compiled in {stats.compile_s:.0f} s)")
        return stats


def topology_target(name: str, effort: str = "low") -> Target:
    """Return the TPU slice `name`. Raises UserError if it is unknown or libtpu is not installed."""
    described = parse_topology(name)
    compiler = compiler_version()
    if jax.config.jax_platforms is None:  # do not look for a TPU on this machine
        jax.config.update("jax_platforms", "cpu")
    return Target(
        name,
        described.num_chips,
        described.chip.memory_bytes,
        compiler,
        lambda: topology_devices(described),
        described,
        effort,
    )


def local_target(num_devices: int) -> Target:
    """Return the first devices of this machine; on a CPU they are simulated. Raises UserError if there are fewer."""
    try:
        jax.config.update("jax_num_cpu_devices", num_devices)
    except RuntimeError:  # JAX has started, so the number is fixed
        pass
    devices, platform = jax.devices(), jax.default_backend()
    if num_devices > len(devices):
        hint = "" if platform == "cpu" else "; JAX_PLATFORMS=cpu simulates any number"
        raise UserError(f"--devices {num_devices}: this machine has {len(devices)} {platform} device(s){hint}")
    compiler = f"XLA for {platform}, {report.describe_machine()['processor']}"
    name = f"{num_devices} x {devices[0].device_kind}"
    return Target(name, num_devices, memory.available_bytes(num_devices), compiler, lambda: devices[:num_devices])


def _outcome(stats: compile_lib.CompiledStats) -> str:
    size = "memory unknown" if stats.memory_bytes is None else f"{stats.memory_bytes / 2**30:.2f} GiB per device"
    return f"{'fits' if stats.fits else 'does not fit'}, {size}"
