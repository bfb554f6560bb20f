"""Signs that training has gone wrong in a way that more of it will not mend; pure, from the rows of stats.jsonl."""

DIVERSITY = 0.25  # of photographs': an alarm below it, where it had been twice as high
SURE = 0.01  # D(G(z)) after its update, and 1 - D(x): below, D has won and G's gradient vanishes


def alarm(rows: list[dict]) -> str | None:
    """What the rows up to a snapshot say, in words; None where all is well.

    rows: of stats.jsonl, oldest first; the last is a snapshot's, with what was measured of it.
    """
    snapshots = [i for i, row in enumerate(rows) if "diversity" in row or "ssim_among" in row]
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
    if mean("d_fake_after") < SURE and mean("d_real") > 1 - SURE:
        said.append(
            f"the discriminator is sure of everything (D(x) {mean('d_real'):.3f}, D(G(z)) {mean('d_fake_after'):.3f}): "
            "the generator learns nothing from it"
        )
    return "; ".join(said) or None
