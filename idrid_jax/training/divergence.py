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
from idrid_jax.training import mesh as mesh_lib
from idrid_jax.training.state import TrainState

MOST = 3  # times that a run goes back: at an eighth of its updates it is not their size that is wrong


class TrainingDiverged(UserError):
    """A loss, a gradient, a parameter or a statistic is NaN or infinite.

    Attributes:
      found: what it is, and at which step.
    """

    def __init__(self, found: str, advice: str):
        super().__init__(f"{found}; {advice}")
        self.found, self.advice = found, advice

    def in_the_end(self, restarts: int) -> "TrainingDiverged":
        """The same, which also says how often training went back before."""
        times = f"{restarts} time{'s' if restarts > 1 else ''}"
        said = f"; training went back {times}, to updates 1/{2**restarts} as large" if restarts else ""
        return TrainingDiverged(self.found + said, self.advice)


def check_metrics(rows: list[dict[str, float]], done: int, workdir, config: ml_collections.ConfigDict) -> None:
    """Raises TrainingDiverged for a loss or gradient in `rows`, metrics of the updates up to `done`, that is not
    finite."""
    for step, row in enumerate(rows, done - len(rows) + 1):
        for network, names in (("discriminator", ("loss_d", "grad_norm_d")), ("generator", ("loss_g", "grad_norm_g"))):
            for name in names:
                if not np.isfinite(row[name]):
                    raise _diverged(f"step {step}: {name} of the {network} is {row[name]}", network, workdir, config)


def check_state(state: TrainState, done: int, workdir, config: ml_collections.ConfigDict) -> None:
    """Raises TrainingDiverged for networks that are not finite: before a save, so that the checkpoints before are never
    pushed out by a broken one."""
    for network, part in (("discriminator", state.d), ("generator", (state.g, state.ema))):
        if not _finite(part):
            found = f"step {done}: a parameter or statistic of the {network} is not finite"
            raise _diverged(found, network, workdir, config)


def _diverged(found, network, workdir, config):
    rate = f"{network[0]}_learning_rate"
    advice = f"lower config.optimizer.{rate} ({config.optimizer[rate]:g}) or set config.optimizer.clip_norm"
    if config.on_divergence == "stop":
        advice += ", or config.on_divergence to restore"
    return TrainingDiverged(found, f"the last good checkpoint stays in {workdir}: {advice}")


@jax.jit
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def restarted(state: TrainState, restarts: int, mesh: jax.sharding.Mesh) -> TrainState:
    """A state that training goes back to, for the `restarts`th time."""
    return dataclasses.replace(state, restarts=mesh_lib.everywhere(np.array(restarts, np.int32), mesh))
