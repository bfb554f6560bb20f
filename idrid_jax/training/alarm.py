"""Signs that training has gone wrong in a way that more of it will not mend; pure, from the rows of stats.jsonl."""

import math

from idrid_jax.training.losses import LOSSES

DIVERSITY = 0.25  # of photographs': an alarm below it, where it had been twice as high
SURE = 0.01  # chance that D is wrong, of an image or of a pair: below, D has won and G's gradient vanishes


def alarm(rows: list[dict], loss: str) -> str | None:
    """What the rows up to a snapshot say, in words; None where all is well.

    rows: of stats.jsonl, oldest first; the last is a snapshot's, with what was measured of it. loss: a name in
    `losses.LOSSES`. Of one without a border (Wasserstein's) nobody can say when D is sure, but where it is of pairs.
    """
    snapshots = [i for i, row in enumerate(rows) if "diversity" in row or "ssim_within" in row]
    if not snapshots or snapshots[-1] != len(rows) - 1:
        return None
    said = []
    diversity = [rows[i]["diversity"] for i in snapshots if "diversity" in rows[i]]
    if diversity and diversity[-1] < DIVERSITY and max(diversity) > 2 * diversity[-1]:
        said.append(
            f"diversity has fallen to {diversity[-1]:.2f} of photographs' (it was {max(diversity):.2f}): the generator "
            "collapses onto few images"
        )
    since = rows[snapshots[-2] + 1 if len(snapshots) > 1 else 0 :]
    mean = lambda name: sum(row[name] for row in since) / len(since)
    if found := _sure(mean, LOSSES[loss]):
        said.append(f"the discriminator is sure of everything ({found}): the generator learns nothing from it")
    return "; ".join(said) or None


def _sure(mean, loss) -> str:
    """What says that D has won; empty where it has not. mean: a metric's name -> its mean since the last snapshot."""
    if loss.border and mean("d_fake_after") < SURE and mean("d_real") > 1 - SURE:
        return f"D(x) {mean('d_real'):.3f}, D(G(z)) {mean('d_fake_after'):.3f}"
    if loss.pairs and (wrong := -math.expm1(-mean("loss_d"))) < SURE:  # the loss is -log of the chance to be right
        return f"wrong of a pair with a chance of {wrong:.1g}"
    return ""
