"""`idrid-jax plan`: memory, work, collectives and a roofline of a configuration on hardware that need not be there."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from idrid_jax import config as config_lib
from idrid_jax.bench import memory
from idrid_jax.bench.report import log, print_row
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.plan import report, topology
from idrid_jax.plan.compile import CompiledStats
from idrid_jax.plan.target import Target, local_target, topology_target

SCALING_SIZES = (1, 4, 16, 64, 256)  # chips of the slices in a weak-scaling table


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration on a target, and the compiler's figures.

    Attributes:
      config: `config.batch_size` is the global batch.
      batch_source: where the batch size comes from, for people.
      roofline: None without a topology, or where the step does not fit.
      largest: None if it was not searched for, or the memory of a device is unknown.
    """

    config: ml_collections.ConfigDict
    target: Target
    stats: CompiledStats
    batch_source: str
    roofline: topology.Roofline | None
    largest: memory.LargestBatch | None = None

    @property
    def batch_per_chip(self) -> int:
        """Images of each data-parallel shard: of a chip, or of `config.mesh.rows` chips that split the rows."""
        return self.config.batch_size // num_shards(self.config, self.target.num_chips)

    @property
    def fits(self) -> bool:
        limit = self.target.memory_limit
        return limit is None and self.stats.fits or _need(self.stats).fits(limit)

    @property
    def images_per_s(self) -> float | None:
        """By the roofline, if compute, memory and interconnect overlap completely; None without one."""
        return self.config.batch_size / self.roofline.overlapped_s if self.roofline and self.fits else None

    def row(self) -> dict[str, object]:
        """Return the content of the plan's JSON line; bytes and operations are per device and update."""
        config, target, stats, line = self.config, self.target, self.stats, self.roofline
        return {
            "network": config.network,
            "dtype": config.dtype,
            "target": target.name,
            "num_chips": target.num_chips,
            "batch_size": config.batch_size,
            "batch_per_chip": self.batch_per_chip,
            "batch_source": self.batch_source,
            "mesh": config.mesh.to_dict(),
            "fits": self.fits,
            "memory_bytes": stats.memory_bytes,
            "memory_limit_bytes": target.memory_limit,
            "memory_by_kind": stats.memory_by_kind,
            "flops": stats.flops,
            "bytes_accessed": stats.bytes_accessed,
            "collectives": stats.collectives,
            "interconnect_bytes": stats.interconnect_bytes,
            "roofline": line
            and dataclasses.asdict(line) | {"overlapped_s": line.overlapped_s, "serial_s": line.serial_s},
            "images_per_s_roofline": self.images_per_s,
            "largest_batch_size": self.largest and self.largest.batch_size,
            "refused_batch_size": self.largest and (self.largest.refused or None),
            "compile_s": stats.compile_s,
            "compiler": target.compiler,
            "effort": target.effort,
            "jax": jax.__version__,
        }


def plan_one(
    config: ml_collections.ConfigDict,
    *,
    topology_name: str = "",
    num_devices: int = 0,
    batch_size: int = 0,
    batch_per_chip: int = 0,
    mesh: Sequence[str] = (),
    find_largest: bool = True,
    effort: str = "low",
    use_cache: bool = True,
) -> None:
    """Plan `config` for a TPU slice or for devices of this machine; print a JSON line, then a page of text.

    Args:
      topology_name, num_devices: a slice such as "v5e:16x16", or a number of local devices; exactly one of them.
      batch_size, batch_per_chip: images per update over all chips, or of each chip; by default each chip gets the
        configuration's `batch_size`.
      mesh: "FIELD=VALUE" changes of `config.mesh`.
      find_largest: also search for the largest batch that fits.
      effort: of the TPU compiler, a key of `compile.EFFORTS`.

    Raises UserError for an invalid topology, mesh or batch, and for a step that does not fit (with the largest batch
    that does).
    """
    if bool(topology_name) == bool(num_devices):
        raise UserError("choose what to plan for: --topology v5e:16x16, --devices 8 or --scaling all, one of them")
    if batch_size and batch_per_chip:
        raise UserError("--batch_size and --batch_per_chip exclude each other: choose one")
    target = topology_target(topology_name, effort) if topology_name else local_target(num_devices)
    config = prepared_config(config, mesh)
    if batch_size:
        config, source = _with_batch(config, batch_size), "--batch_size"
    else:
        config, source = _per_chip(config, target, batch_per_chip)
    plan = make_plan(config, target, source, use_cache=use_cache)
    if target.memory_limit and (find_largest or not plan.fits):
        plan = dataclasses.replace(plan, largest=_find_largest(plan, use_cache))
    print_row(plan.row())
    if not plan.fits:
        raise UserError(_refusal(plan))
    print("\n" + report.plan_page(plan))


def plan_scaling(
    config: ml_collections.ConfigDict,
    kinds: Sequence[str],
    *,
    sizes: Sequence[int] = SCALING_SIZES,
    batch_per_chip: int = 0,
    mesh: Sequence[str] = (),
    find_largest: bool = True,
    effort: str = "low",
    use_cache: bool = True,
    out: Path | None = None,
) -> None:
    """Plan `config` for slices of several sizes and kinds with the same batch per chip (weak scaling).

    Prints a JSON line for each slice and then a table; writes a picture to `out`. Sizes that `config.mesh.rows` does
    not divide are skipped. Raises UserError for an unknown kind, size or mesh.

    kinds: keys of `topology.CHIPS`, or ["all"]. Other arguments: see `plan_one`.
    """
    kinds = list(topology.CHIPS) if list(kinds) == ["all"] else list(kinds)
    config = prepared_config(config, mesh)
    slices = [
        topology.topology_with_chips(kind, size) for kind in kinds for size in sizes if size % config.mesh.rows == 0
    ]
    if not slices:
        raise UserError(
            f"--mesh rows={config.mesh.rows} divides none of {', '.join(map(str, sizes))} chips: choose a divisor, or "
            "other --chips"
        )
    plans, largest_per_chip = [], {}
    for number, described in enumerate(slices, 1):
        log(f"{number} of {len(slices)}: {described.name}")
        target = topology_target(described.name, effort)
        sized, source = _per_chip(config, target, batch_per_chip)
        plan = make_plan(sized, target, source, use_cache=use_cache)
        if find_largest:
            # What fits one chip about fits each of many, so the search is short from there
            start = largest_per_chip.get(described.chip.name)
            plan = dataclasses.replace(plan, largest=_find_largest(plan, use_cache, start))
            found = plan.largest.batch_size // num_shards(sized, target.num_chips)
            largest_per_chip.setdefault(described.chip.name, found)
        print_row(plan.row())
        plans.append(plan)
    print("\n" + report.scaling_table(plans))
    if out is not None:
        report.save_scaling_figure(plans, out)
        print(f"\npicture: {out}")


def make_plan(config: ml_collections.ConfigDict, target: Target, batch_source: str, *, use_cache: bool = True) -> Plan:
    """Return the plan of one configuration on one target."""
    stats = target.compile_stats(config, use_cache=use_cache)
    line = None
    if target.topology is not None and stats.fits:
        line = topology.roofline(
            target.topology,
            flops=stats.flops,
            memory_bytes=stats.bytes_accessed,
            interconnect_bytes=stats.interconnect_bytes,
        )
    return Plan(config, target, stats, batch_source, line)


def prepared_config(config: ml_collections.ConfigDict, mesh: Sequence[str]) -> ml_collections.ConfigDict:
    """Return a checked copy of `config` with one update per call and the changes of its mesh, "FIELD=VALUE".

    Raises UserError for an unknown field or an invalid value.
    """
    config = config_lib.validated(config)
    config.init_from, config.dispatch_steps = "", 1
    for change in mesh:
        name, _, text = change.partition("=")
        if name not in config.mesh:
            raise UserError(f"--mesh {change}: no field {name!r}; {suggest_name(name, config.mesh)}")
        value = {"true": True, "false": False}.get(text.lower(), int(text) if text.lstrip("-").isdigit() else text)
        field = config_lib.TABLE[f"mesh.{name}"]
        if type(value) is not field.value_type and not (field.auto and value == config_lib.AUTO):
            raise UserError(f"--mesh {change}: config.mesh.{name} must be {field.expected}")
        config.mesh[name] = value
    return config_lib.validated(config)


def num_shards(config: ml_collections.ConfigDict, num_chips: int) -> int:
    """Return how many ways the batch is split."""
    data = config.mesh.data
    return max(1, num_chips // config.mesh.rows) if data == config_lib.AUTO else data


def _per_chip(config, target: Target, batch_per_chip: int) -> tuple[ml_collections.ConfigDict, str]:
    """Return `config` with the global batch of so many images per shard (0: its own batch size), and their source."""
    source = "--batch_per_chip" if batch_per_chip else "the configuration's batch_size, per chip"
    return _with_batch(config, (batch_per_chip or config.batch_size) * num_shards(config, target.num_chips)), source


def _with_batch(config, batch_size: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    return config


def _need(stats: CompiledStats) -> memory.Need:
    fixed = stats.memory_bytes - stats.memory_by_kind["temporaries"] if stats.memory_by_kind else None
    return memory.Need(stats.fits, stats.memory_bytes, fixed)


def _find_largest(plan: Plan, use_cache: bool, start_per_shard: int | None = None) -> memory.LargestBatch:
    target, shards = plan.target, num_shards(plan.config, plan.target.num_chips)

    def need(batch_size: int) -> memory.Need:
        if batch_size == plan.config.batch_size:
            return _need(plan.stats)
        return _need(target.compile_stats(_with_batch(plan.config, batch_size), use_cache=use_cache))

    start = start_per_shard * shards if start_per_shard else plan.config.batch_size
    return memory.largest_batch(need, target.memory_limit, start=start, multiple=shards)


def _refusal(plan: Plan) -> str:
    config, target, largest = plan.config, plan.target, plan.largest
    limit = f"{target.memory_limit / 2**30:.2f} GiB" if target.memory_limit else "the memory"
    needed = f"{plan.stats.memory_bytes / 2**30:.1f} of {limit}" if plan.stats.memory_bytes else limit
    message = (
        f"batch size {config.batch_size} ({plan.batch_per_chip} per chip): {config.network} in {config.dtype} does not "
        f"fit {target.name}, {needed} per {target.unit}; "
    )
    if not largest or not largest.batch_size:
        return message + "not even one image per chip fits: split the rows (--mesh rows=2), or set config.model.remat"
    low_effort = target.topology is not None and target.effort == "low"
    note = " (at low effort; --effort full may save memory)" if low_effort else ""
    return message + f"the largest batch known to fit is {largest.batch_size}{note}"
