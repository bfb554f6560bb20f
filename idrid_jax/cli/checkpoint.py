"""What all commands share that read a checkpoint of a run: their flags, and that only process 0 runs them."""

from absl import flags


def define(values, several: bool = False):
    """Define --workdir, --step, --batch_statistics and --seed. several: whether --workdir can be repeated."""
    define_workdir = flags.DEFINE_multi_string if several else flags.DEFINE_string
    define_workdir("workdir", None, "the run directory of idrid-jax train", required=True, flag_values=values)
    flags.DEFINE_integer(
        "step",
        None,
        "step of the checkpoint; default: the one that training chose, or else the newest",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "batch_statistics",
        "auto",
        ["auto", "running", "recomputed"],
        "BatchNorm statistics: running (collected in training) or recomputed (for the weights in use); auto "
        "is recomputed if the run has a moving average of the weights",
        flag_values=values,
    )
    define_seed(values)


def define_seed(values):
    """Define --seed."""
    flags.DEFINE_integer(
        "seed", 0, "random seed", lower_bound=0, upper_bound=2**32 - 1, flag_values=values
    )  # fmt: skip


def is_process_0(command: str) -> bool:
    """Return whether this process should run `command`; print a line if not.

    A launcher may start every command in several processes. Sampling and evaluation take minutes on one device, so
    process 0 does them alone.
    """
    from idrid_jax.training import multihost

    index = multihost.launched_process_id()
    if index == 0:
        return True
    print(f"{command}: only process 0 runs this command; process {index} ends", flush=True)
    return False
