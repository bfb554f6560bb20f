"""Numbers that are finite no longer: where that began, and whether training goes back and tries smaller updates.

Data and random keys are functions of (seed, step), so the same steps come again after going back to a checkpoint: what
keeps them from the same end is that updates are half as large from there on, of both networks, for good. The checkpoint
that is gone back to stays as it is. A run that is killed before the next one diverges again where it did, and goes the
same way.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from idrid_jax.errors import UserError
from idrid_jax.training import sharding as mesh_lib
from idrid_jax.training.run_dir import came_far, saved
from idrid_jax.training.state import TrainState

MOST = 3  # times that a run goes back: at an eighth of its updates it is not their size that is wrong


class TrainingDiverged(UserError):
    """A loss, a gradient, a parameter or a statistic is NaN or infinite.

    Attributes:
      networks: whose learning rate may be to blame.
    """

    def __init__(self, found: str, *networks: str):
        super().__init__(found)
        self.networks = networks

    def in_the_end(self, restarts: int, workdir, config: ml_collections.ConfigDict) -> "TrainingDiverged":
        """The same with how often training went back before, what is left of it, and what to do. No save is under
        way."""
        times = f"{restarts} time{'s' if restarts > 1 else ''}"
        found = f"{self}; training went back {times}, to updates 1/{2**restarts} as large" if restarts else str(self)
        rates = [f"{network[0]}_learning_rate" for network in self.networks]
        named = " or ".join(f"config.optimizer.{rate} ({config.optimizer[rate]:g})" for rate in rates)
        restore = "set config.on_divergence to restore, or " if config.on_divergence == "stop" else ""
        advice = f"{restore}lower {named} or set config.optimizer.clip_norm"
        if saved(workdir):  # with whose configuration a run goes on
            elsewhere = f"in another --workdir, with --config.init_from={workdir} to keep the networks"
            return TrainingDiverged(f"{found}; the last good checkpoint stays in {workdir}: {advice} {elsewhere}")
        elsewhere = " in another --workdir" if came_far(workdir) else ""  # what the first snapshot showed is there
        return TrainingDiverged(f"{found}; no checkpoint is in {workdir} yet: {advice}{elsewhere}")


def check_metrics(rows: list[dict[str, float]], done: int) -> None:
    """Raises TrainingDiverged for a loss or gradient in `rows`, metrics of the updates up to `done`, that is not
    finite."""
    for step, row in enumerate(rows, done - len(rows) + 1):
        for name in ("loss_d", "grad_norm_d"):
            if not np.isfinite(row[name]):
                raise TrainingDiverged(f"step {step}: {name} of the discriminator is {row[name]}", "discriminator")
        for name in ("loss_g", "grad_norm_g"):  # judged by the discriminator that this step updated
            if not np.isfinite(row[name]):
                whose = "generator, or of the discriminator just updated,"
                raise TrainingDiverged(
                    f"step {step}: {name} of the {whose} is {row[name]}", "discriminator", "generator"
                )


def check_state(state: TrainState, done: int) -> None:
    """Raises TrainingDiverged for networks that are not finite: before a save, so that the checkpoints before are never
    pushed out by a broken one."""
    for network, part in (("discriminator", state.d), ("generator", (state.g, state.ema))):
        if not _finite(part):
            raise TrainingDiverged(f"step {done}: a parameter or statistic of the {network} is not finite", network)


@jax.jit
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def restarted(state: TrainState, restarts: int, mesh: jax.sharding.Mesh) -> TrainState:
    """A state that training goes back to, for the `restarts`th time."""
    return dataclasses.replace(state, restarts=mesh_lib.everywhere(np.array(restarts, np.int32), mesh))
