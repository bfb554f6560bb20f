"""`idrid-jax plan`: see `idrid_jax/plan/`. JSON lines on stdout, then a page or a table for people; notes on stderr."""

from pathlib import Path

from absl import flags

from idrid_jax.cli.command import Command
from idrid_jax.errors import UserError


def _define(values, argv):
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "a file such as configs/dcgan128.py; --config.FIELD=VALUE changes a field (needed)",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string("topology", "", "a TPU slice such as v5e:16x16; none needs to be here", flag_values=values)
    flags.DEFINE_integer(
        "devices", 0, "or so many devices as this machine has; of a CPU, simulated", lower_bound=0, flag_values=values
    )
    flags.DEFINE_list(
        "scaling", [], "or slices of several sizes: v5e, v5p, v6e with commas between, or all", flag_values=values
    )
    flags.DEFINE_list("chips", ["1", "4", "16", "64", "256"], "of --scaling's slices", flag_values=values)
    flags.DEFINE_integer(
        "batch", 0, "images per update over all chips; 0: the configuration's", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "per_chip",
        0,
        "or images of each chip; with --scaling 0 is the configuration's batch",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_list("mesh", [], "changes config.mesh: data=128,rows=2", flag_values=values)
    flags.DEFINE_boolean(
        "largest", True, "look for the largest batch that fits: a few more compilations", flag_values=values
    )
    flags.DEFINE_enum(
        "effort",
        "low",
        ["low", "full"],
        "of the TPU's compiler: seconds, and rather more memory than train takes; or minutes, and the very program",
        flag_values=values,
    )
    flags.DEFINE_boolean("fresh", False, "compile again what was compiled before", flag_values=values)
    flags.DEFINE_string("out", "", "of --scaling, a picture; empty: plan-NETWORK.png here", flag_values=values)


def _run(values):
    if values.config is None:
        raise UserError("--config is missing: name a file such as configs/dcgan128.py")
    from idrid_jax.plan import run

    options = dict(
        per_chip=values.per_chip, mesh=values.mesh, largest=values.largest, fresh=values.fresh, effort=values.effort
    )
    if not values.scaling:
        if values.out:
            raise UserError("--out goes with --scaling, which draws a picture")
        run.one(values.config, name=values.topology, devices=values.devices, batch=values.batch, **options)
        return
    for name in ("topology", "devices", "batch"):
        if values[name].value:
            raise UserError(f"--scaling and --{name} exclude each other" + "; take --per_chip" * (name == "batch"))
    if wrong := [size for size in values.chips if not size.isdecimal()]:
        raise UserError(f"--chips {wrong[0]}: give whole numbers with commas between, such as 1,4,16,64,256")
    out = Path(values.out or f"plan-{values.config.network}.png")
    run.scaling(values.config, values.scaling, sizes=list(map(int, values.chips)), out=out, **options)


PLAN = Command(
    "what a configuration takes of a TPU pod (memory, work, exchanges, a roofline time), without the pod",
    "--config configs/dcgan128.py --topology v5e:16x16 --per_chip 32",
    _define,
    _run,
)
