"""What the commands have in common that read a run's checkpoint: its flags, and that process 0 does it alone."""

from absl import flags


def define(values):
    flags.DEFINE_string("workdir", None, "of idrid-jax train", required=True, flag_values=values)
    flags.DEFINE_integer(
        "step", None, "of a checkpoint; empty: the one that training chose, else the newest", flag_values=values
    )
    flags.DEFINE_enum(
        "batch_statistics",
        "auto",
        ["auto", "running", "standing"],
        "of BatchNorm: as training collected them, or of the weights that draw; auto: standing for a moving average",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "the images are a function of the checkpoint and this",
        lower_bound=0,
        upper_bound=2**32 - 1,
        flag_values=values,
    )


def another_process(command) -> bool:
    """Whether a launcher started this one beside process 0, which samples and evaluates alone: it is minutes of work
    for one device, and each image then counts once without padding or masks."""
    from idrid_jax.training import multihost

    where = multihost.place()
    if where is None or where.process_id == 0:
        return False
    print(f"{command}: process 0 does it alone; process {where.process_id} has nothing to do", flush=True)
    return True
