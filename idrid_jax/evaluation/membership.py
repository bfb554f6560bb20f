"""Membership: can the discriminator's logits reveal which photographs it was trained on?

The attack: a photograph with a high logit was probably in the training set. Its AUC over training and held-out
photographs is 0.5 if the logits reveal nothing. A discriminator that has memorized its training photographs must not be
published with them (Hayes et al., "LOGAN: Membership Inference Attacks Against Generative Models", PoPETs 2019, section
4.1).

Reference: the two splits differ a little by themselves, so the AUC of eight untrained discriminators (up to 0.59 on
IDRiD) is the level to exceed. NumPy; pure.
"""

import numpy as np

from idrid_jax.evaluation import intervals

MIN_IMAGES = 10  # photographs of each kind


def measure(
    members: np.ndarray,
    non_members: np.ndarray,
    untrained: list[tuple[np.ndarray, np.ndarray]] = (),
    *,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """Measure the membership inference attack on the discriminator's logits.

    Args: logits of training [N] and held-out [M] photographs, and pairs of the same of untrained discriminators.
    Returns: for json.dumps: {"auc", "interval" (95 %, over photographs), "untrained_auc" (the highest of the untrained
      discriminators, at least 0.5), "verdict"}, or {"missing": why}. Leakage is reported if the whole interval lies
      above "untrained_auc".
    """
    for name, logits in (("training", members), ("held-out", non_members)):
        if len(logits) < MIN_IMAGES:
            return {"missing": f"{len(logits)} {name} photographs; at least {MIN_IMAGES} are needed"}
    members, non_members = np.asarray(members, float), np.asarray(non_members, float)
    rng = np.random.default_rng(seed)

    def resample(logits):
        return logits[rng.integers(len(logits), size=len(logits))]

    low, high = intervals.percentile_interval([auc(resample(members), resample(non_members)) for _ in range(resamples)])
    untrained_auc = max([0.5, *(auc(*logits) for logits in untrained)])
    leaks = "the discriminator reveals which photographs it was trained on"
    verdict = leaks if low > untrained_auc else "no sign that the discriminator reveals its training photographs"
    return {
        "auc": auc(members, non_members),
        "interval": [low, high],
        "untrained_auc": untrained_auc,
        "verdict": verdict,
    }


def auc(members: np.ndarray, non_members: np.ndarray) -> float:
    """Return the probability that a member's score [N] is above another's [M], equal ones counting half."""
    members, non_members = np.asarray(members), np.asarray(non_members)
    above = (members[:, None] > non_members).sum() + 0.5 * (members[:, None] == non_members).sum()
    return float(above / (len(members) * len(non_members)))


def table(result: dict) -> str:
    """Render what `measure` returned as one line of text."""
    if "missing" in result:
        return f"Membership: not judged: {result['missing']}."
    low, high = result["interval"]
    return (
        f"Membership: {result['verdict']}: the AUC of its logits for training against held-out photographs is "
        f"{result['auc']:.2f} ({low:.2f} to {high:.2f}; untrained discriminators reach {result['untrained_auc']:.2f})."
    )
