"""`idrid-jax plan`: what a configuration needs on a TPU slice; see `idrid_jax/plan/`.

JSON lines on stdout, then a page or a table for people; notes on stderr.
"""

from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.cli.parsing import define_config
from idrid_jax.errors import UserError


def _define(values, argv):
    define_config(values, argv, " (needed)")
    flags.DEFINE_string("topology", "", "a TPU slice such as v5e:16x16; this machine needs no TPU", flag_values=values)
    flags.DEFINE_integer(
        "devices", 0, "instead: so many devices of this machine; CPUs are simulated", lower_bound=0, flag_values=values
    )
    flags.DEFINE_list(
        "scaling", [], "instead: slices of several sizes of v5e, v5p or v6e (a list), or all", flag_values=values
    )
    flags.DEFINE_list("chips", ["1", "4", "16", "64", "256"], "sizes of the slices of --scaling", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 0, "images per update over all chips (the global batch)", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "batch_per_chip",
        0,
        "instead: images per update and chip; default: the configuration's batch_size",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_list("mesh", [], "fields of config.mesh to change, such as data=128,rows=2", flag_values=values)
    flags.DEFINE_boolean(
        "largest", True, "search for the largest batch that fits, which takes a few more compilations",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "effort",
        "low",
        ["low", "full"],
        "effort of the TPU compiler: low takes seconds and overestimates memory; full takes minutes and compiles the "
        "program that train runs",
        flag_values=values,
    )
    flags.DEFINE_boolean("recompile", False, "ignore cached results and compile again", flag_values=values)
    flags.DEFINE_string(
        "out", "", "with --scaling: the plot to write; default: plan-NETWORK.png in the current folder",
        flag_values=values,
    )  # fmt: skip


def _run(values):
    if values.config is None:
        raise UserError("--config is missing: name a file such as configs/dcgan128.py")
    from idrid_jax.plan import run

    options = dict(
        batch_per_chip=values.batch_per_chip,
        mesh=values.mesh,
        find_largest=values.largest,
        use_cache=not values.recompile,
        effort=values.effort,
    )
    if not values.scaling:
        if values.out:
            raise UserError("--out goes with --scaling, which writes a plot")
        target = dict(topology_name=values.topology, num_devices=values.devices)
        run.plan_one(values.config, **target, batch_size=values.batch_size, **options)
        return
    for name in ("topology", "devices", "batch_size"):
        if values[name].value:
            instead = "; choose --batch_per_chip" if name == "batch_size" else ""
            raise UserError(f"--scaling and --{name} exclude each other{instead}")
    if wrong := [size for size in values.chips if not size.isdecimal()]:
        raise UserError(f"--chips {wrong[0]}: give whole numbers separated by commas, such as 1,4,16,64,256")
    out = Path(values.out or f"plan-{values.config.network}.png")
    run.plan_scaling(values.config, values.scaling, sizes=list(map(int, values.chips)), out=out, **options)


PLAN = Command(
    "memory, FLOPs, communication and estimated time of a configuration on a TPU slice, without the TPU",
    "--config configs/dcgan128.py --topology v5e:16x16 --batch_per_chip 32",
    _define,
    _run,
)
