"""`idrid-jax plan`: what a configuration would take of a TPU slice or of so many devices, without having them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from idrid_jax import config as config_lib
from idrid_jax.bench import report
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models import NETWORKS
from idrid_jax.plan import largest as largest_lib
from idrid_jax.plan import roofline, tell, topology
from idrid_jax.plan.compile import Facts
from idrid_jax.plan.target import Target, of_devices, of_topology

SIZES = (1, 4, 16, 64, 256)  # chips of a weak-scaling table


@dataclasses.dataclass(frozen=True)
class Planned:
    """A configuration on a target, and what came out.

    largest: None where nobody looked for it, or nobody knows how much memory a chip has.
    """

    config: ml_collections.ConfigDict
    target: Target
    facts: Facts
    roofline: roofline.Roofline | None
    largest: largest_lib.Largest | None = None

    @property
    def shares(self) -> int:
        """How many ways the batch is split."""
        return _shares(self.config, self.target.chips)

    @property
    def fits(self) -> bool:
        return _fits(self.facts, self.target.limit)

    @property
    def images_per_s(self) -> float | None:
        """By the roofline, if all overlaps; None without one."""
        return self.config.batch_size / self.roofline.least_s if self.roofline and self.fits else None

    def row(self) -> dict[str, object]:
        """One JSON line's content; bytes and operations are of a chip, in an update."""
        config, facts, line = self.config, self.facts, self.roofline
        return {
            "plan": config.network,
            "dtype": config.dtype,
            "target": self.target.name,
            "chips": self.target.chips,
            "batch": config.batch_size,
            "accumulate": config.accumulate,
            "mesh": config.mesh.to_dict(),
            "fits": self.fits,
            "memory_bytes": facts.needed,
            "memory_limit_bytes": self.target.limit,
            "memory_by_kind": facts.memory,
            "flops": facts.flops,
            "bytes_touched": facts.bytes,
            "main_memory_bytes": facts.main_bytes,
            "collectives": facts.collectives,
            "wire_bytes": facts.wire_bytes,
            "roofline": dataclasses.asdict(line) | {"least_s": line.least_s, "serial_s": line.serial_s}
            if line
            else None,
            "images_per_s_roofline": self.images_per_s,
            "largest_batch": self.largest.batch if self.largest else None,
            "refused_batch": self.largest.refused or None if self.largest else None,
            "compile_s": facts.compile_s,
            "compiler": self.target.compiler,
            "effort": self.target.effort,
            "jax": jax.__version__,
        }


def one(
    config: ml_collections.ConfigDict,
    *,
    name: str = "",
    devices: int = 0,
    batch: int = 0,
    per_chip: int = 0,
    mesh: Sequence[str] = (),
    largest: bool = True,
    effort: str = "low",
    fresh: bool = False,
) -> None:
    """Plans `config` for the slice `name`, or for so many devices of this machine: a JSON line, then a page for people.

    batch: images per update over all chips; per_chip: images of each instead; neither: the configuration's.
    mesh: "AXIS=VALUE" words that change `config.mesh`.
    effort: of the TPU's compiler, in `compile.EFFORTS`.
    Raises UserError for what is no topology, mesh or batch, and for a step that does not fit, with the largest that
    does.
    """
    if bool(name) == bool(devices):
        raise UserError("say what to plan for: --topology v5e:16x16, or --devices 8, or --scaling all; one of them")
    if batch and per_chip:
        raise UserError("--batch and --per_chip exclude each other: take one")
    target = of_topology(name, effort) if name else of_devices(devices)
    config = prepared(config, mesh)
    config.batch_size = batch or (per_chip * _shares(config, target.chips) if per_chip else config.batch_size)
    planned = plan(config, target, fresh=fresh)
    if target.limit and (largest or not planned.fits):
        planned = dataclasses.replace(planned, largest=_largest(planned, fresh))
    report.emit(planned.row())
    if not planned.fits:
        raise UserError(_no_room(planned))
    print("\n" + tell.page(planned))


def scaling(
    config: ml_collections.ConfigDict,
    kinds: Sequence[str],
    *,
    sizes: Sequence[int] = SIZES,
    per_chip: int = 0,
    mesh: Sequence[str] = (),
    largest: bool = True,
    effort: str = "low",
    fresh: bool = False,
    out: Path | None = None,
) -> None:
    """Plans `config` for slices of so many chips of each kind, each chip with as many images: a JSON line each, then a
    table, and a picture at `out`.

    per_chip: 0 takes the configuration's batch for one chip. effort: of the compiler, in `compile.EFFORTS`.
    Raises UserError for a kind, a size or a mesh that is none.
    """
    kinds = list(topology.CHIPS) if list(kinds) == ["all"] else list(kinds)
    config = prepared(config, mesh)
    per_chip = per_chip or config.batch_size
    slices = [topology.of_size(kind, chips) for kind in kinds for chips in sizes if chips % config.mesh.rows == 0]
    if not slices:
        raise UserError(
            f"--mesh rows={config.mesh.rows}: divides none of {', '.join(map(str, sizes))} chips; take a divisor, "
            "or other --chips"
        )
    planned, most = [], {}
    for number, described in enumerate(slices, 1):
        report.note(f"{number} of {len(slices)}: {described.name}")
        target = of_topology(described.name, effort)
        here = _with_batch(config, per_chip * _shares(config, target.chips))
        found = plan(here, target, fresh=fresh)
        if largest:
            # What fits one chip fits each of many, but for what the exchanges need: the search there is short
            start = most.get(described.chip.name)
            found = dataclasses.replace(found, largest=_largest(found, fresh, start))
            most.setdefault(described.chip.name, found.largest.batch // found.shares)
        report.emit(found.row())
        planned.append(found)
    print("\n" + tell.scaling(planned, per_chip))
    if out is not None:
        from idrid_jax.plan import plot

        plot.draw(planned, per_chip, out)
        print(f"\nas a picture in {out}")


def plan(config: ml_collections.ConfigDict, target: Target, *, fresh: bool = False) -> Planned:
    """One configuration on one target."""
    facts = target.facts(config, fresh=fresh)
    line = None
    if target.topology is not None and facts.fits:
        line = roofline.of(
            target.topology, flops=facts.flops, memory_bytes=facts.main_bytes, wire_bytes=facts.wire_bytes
        )
    return Planned(config, target, facts, line)


def prepared(config: ml_collections.ConfigDict, mesh: Sequence[str]) -> ml_collections.ConfigDict:
    """A copy of `config`, checked, with one update a call and the mesh that the words say."""
    config_lib.check(config)
    config = config.copy_and_resolve_references()
    config.init_from, config.dispatch_steps = "", 1
    for word in mesh:
        name, _, value = word.partition("=")
        if name not in config.mesh:
            raise UserError(f"--mesh {word}: no field {name!r}; {suggest_name(name, config.mesh)}")
        try:
            known = {"true": True, "false": False}
            config.mesh[name] = known[value.lower()] if isinstance(config.mesh[name], bool) else int(value)
        except (KeyError, ValueError) as error:
            kind = "true or false" if isinstance(config.mesh[name], bool) else "a whole number"
            raise UserError(f"--mesh {word}: {name} takes {kind}, as in --mesh {name}=...") from error
    config_lib.check(config)
    return config


def _shares(config, chips) -> int:
    return config.mesh.data if config.mesh.data != -1 else max(1, chips // config.mesh.rows)


def _with_batch(config, batch):
    config = config.copy_and_resolve_references()
    config.batch_size = batch
    return config


def _fits(facts: Facts, limit: int | None) -> bool:
    return facts.fits and (limit is None or facts.needed is None or facts.needed <= limit)


def _largest(planned: Planned, fresh: bool, start: int | None = None) -> largest_lib.Largest:
    """start: images of each share to try first."""
    target, step = planned.target, planned.shares * planned.config.accumulate
    need = lambda batch: target.facts(
        _with_batch(planned.config, batch), fresh=fresh and batch != planned.config.batch_size
    )
    first = planned.config.batch_size if not start else start * planned.shares
    return largest_lib.search(need, target.limit, start=first, step=step)


def _no_room(planned: Planned) -> str:
    config, target, found = planned.config, planned.target, planned.largest
    needs = "" if planned.facts.needed is None else f"{planned.facts.needed / 2**30:.1f} of "
    line = (
        f"config.batch_size = {config.batch_size}: {config.network} in {config.dtype} does not fit {target.name}: "
        f"{needs}{target.limit / 2**30:.2f} GiB a chip; "
    )
    if not found or not found.batch:
        return line + "not even one image a share does: split its rows (--mesh rows=2), or set config.model.remat"
    low = target.topology is not None and target.effort == "low"
    more = " (at low effort; --effort full may save memory)" if low else ""
    parted = "" if NETWORKS[config.network].batch_norm else ", and config.accumulate makes a larger one in parts"
    return line + f"the largest batch known to fit is {found.batch}{more}{parted}"
