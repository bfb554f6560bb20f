"""What to compile for: a TPU slice that is only described, or devices of this machine."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from idrid_jax.bench import memory, report
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.plan import compile as compile_lib
from idrid_jax.plan import store
from idrid_jax.plan import topology as topology_lib
from idrid_jax.training import sharding as mesh_lib


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips of one kind.

    Attributes:
      name: as the user gave it, "v5e:16x16" or "8 x cpu".
      chips: how many.
      limit: bytes of memory that a program may take of each; None where nobody knows.
      compiler: who speaks, and its version.
      devices: makes the chips, late: what is stored needs none.
      topology: of a TPU slice.
      effort: of the compiler, in `compile.EFFORTS`.
    """

    name: str
    chips: int
    limit: int | None
    compiler: str
    devices: Callable[[], list[jax.Device]]
    topology: topology_lib.Topology | None = None
    effort: str = "full"

    def mesh(self, config: ml_collections.ConfigDict) -> Mesh:
        """The mesh of `config.mesh`. Raises UserError where it does not fit the chips, the batch or the image."""
        return mesh_lib.of_config(config, NETWORKS[config.network].size, devices=self.devices())

    def facts(self, config: ml_collections.ConfigDict, *, fresh: bool = False) -> compile_lib.Facts:
        """What the compiler says of the step of `config` here; compiled once, then read from disk unless `fresh`.

        Raises UserError where the mesh does not fit.
        """
        name = store.key(config, self.name, self.compiler, self.effort)
        said = None if fresh else store.load(name)
        what = f"{config.network} at {config.batch_size} images on {self.name}"
        if said is None:
            mesh = self.mesh(config)
            report.note(
                f"{what}: compiling"
                + " as train does, for minutes" * (self.topology is not None and self.effort == "full")
            )
            said = compile_lib.facts(config, mesh, self.effort)
            store.save(name, said)
            report.note(
                f"{what}: {'fits' if said.fits else 'does not fit'}, {_gib(said.needed)}, {said.compile_s:.0f} s"
            )
        else:
            report.note(f"{what}: {'fits' if said.fits else 'does not fit'}, {_gib(said.needed)}, as compiled before")
        return said


def of_topology(name: str, effort: str = "low") -> Target:
    """A TPU slice by name. Raises UserError where it is unknown, or its compiler is not installed."""
    described = topology_lib.parse(name)
    compiler = topology_lib.compiler()
    if jax.config.jax_platforms is None:  # no TPU here is needed, or to be waited for
        jax.config.update("jax_platforms", "cpu")
    devices = lambda: topology_lib.devices(described)
    return Target(name, described.size, described.chip.memory, compiler, devices, described, effort)


def of_devices(count: int) -> Target:
    """So many of this machine's devices; on a CPU they are simulated. Raises UserError where fewer are there."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has counted its devices: those will have to do
        pass
    here, platform = jax.devices(), jax.default_backend()
    if count > len(here):
        hint = "" if platform == "cpu" else "; JAX_PLATFORMS=cpu simulates them and takes the CPU compiler's word"
        raise UserError(
            f"--devices {count}: {len(here)} {platform} device{'s are' if len(here) > 1 else ' is'} here{hint}"
        )
    limit = memory.available(count)
    compiler = f"XLA for {platform}, {report.machine()['processor']}"
    return Target(f"{count} x {here[0].device_kind}", count, limit, compiler, lambda: here[:count])


def _gib(count: int | None) -> str:
    return "bytes not told" if count is None else f"{count / 2**30:.2f} GiB a chip"
