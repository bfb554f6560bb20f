"""Does the discriminator know its training photographs? Its scores of them beside those of held-out ones.

One that scores them higher has learned them by heart, and gives away who was in the training set to whoever holds it
(Hayes et al., "LOGAN: Membership Inference Attacks Against Generative Models", PoPETs 2019, section 4.1). NumPy; pure.

Two splits differ a little by themselves: untrained networks, which know nobody, say how far (on IDRiD up to 0.59).
"""

import numpy as np

from idrid_jax.evaluation import intervals

LEAST = 10  # photographs of each kind


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member's score [N] is above another's [M]; equal ones count half. 0.5 tells nothing."""
    members, others = np.asarray(members), np.asarray(others)
    above = (members[:, None] > others).sum() + 0.5 * (members[:, None] == others).sum()
    return float(above / (len(members) * len(others)))


def measure(
    members: np.ndarray,
    others: np.ndarray,
    untrained: list[tuple[np.ndarray, np.ndarray]] = (),
    *,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """Scores of training [N] and held-out [M] photographs, and the same of untrained networks -> {"auc", "interval"
    (95 %), "untrained_auc" (their highest AUC, at least 0.5), "verdict"} for json.dumps, or {"missing": why}."""
    for name, scores in (("training", members), ("held-out", others)):
        if len(scores) < LEAST:
            return {"missing": f"{len(scores)} {name} photographs; it takes at least {LEAST}"}
    members, others = np.asarray(members, float), np.asarray(others, float)
    rng = np.random.default_rng(seed)
    draw = lambda scores: scores[rng.integers(len(scores), size=len(scores))]
    low, high = intervals.interval([auc(draw(members), draw(others)) for _ in range(resamples)])
    chance = max([0.5, *(auc(*scores) for scores in untrained)])
    knows = "the discriminator gives away who was trained on"
    verdict = knows if low > chance else "no sign that it knows who was trained on"
    return {"auc": auc(members, others), "interval": [low, high], "untrained_auc": chance, "verdict": verdict}


def line(result: dict) -> str:
    """What `measure` returned, for a console."""
    if "missing" in result:
        return f"Membership: not judged: {result['missing']}."
    low, high = result["interval"]
    return (
        f"Membership: {result['verdict']}: its scores tell training from held-out photographs with an AUC of "
        f"{result['auc']:.2f} ({low:.2f} to {high:.2f}; untrained ones reach {result['untrained_auc']:.2f})."
    )
