"""`idrid-jax bench evaluate`: PSNR and SSIM of all pairs of two sets, beside scikit-image pair by pair.

Ours are the functions that `evaluate` calls. scikit-image takes a sample of the pairs, as all of them would take hours;
its time is told per pair, and both are held to the same values on that sample.
"""

import importlib.util

import numpy as np

from idrid_jax.bench import report, timing
from idrid_jax.errors import UserError

SAMPLE = 12  # pairs that scikit-image compares in a round


def run(*, size: int, channels: int, count: int, rounds: int) -> None:
    """Prints a JSON line for each side and a table. Images are random and smooth: the time does not depend on them.

    Raises UserError without scikit-image, and for sizes that cannot be.
    """
    if importlib.util.find_spec("skimage") is None:
        raise UserError("scikit-image is not installed: pip install 'idrid_jax[test]' or bash launch/install.sh test")
    if size < 11:
        raise UserError(f"--size {size}: SSIM's window is 11 pixels wide; take at least 11")
    if channels not in (1, 3):
        raise UserError(f"--channels {channels}: neither 1 (grey) nor 3 (RGB)")
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    from idrid_jax.evaluation.image_quality import psnr_pairs, ssim_pairs

    rng = np.random.default_rng(0)
    a, b = (_smooth(rng, count, size, channels) for _ in range(2))
    pairs = [tuple(pair) for pair in rng.integers(0, count, (SAMPLE, 2))]

    def theirs():
        return [
            (
                structural_similarity(
                    a[i], b[j], channel_axis=-1, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
                ),
                peak_signal_noise_ratio(a[i], b[j], data_range=1.0),
            )
            for i, j in pairs
        ]

    def ours():
        return ssim_pairs(a, b), psnr_pairs(a, b)

    times = timing.interleaved({"idrid_jax": ours, "scikit-image": theirs}, rounds)
    found = [np.asarray(values) for values in ours()]
    apart = np.abs(np.array(theirs()) - [[values[i, j] for values in found] for i, j in pairs]).max(axis=0)
    per_pair = {
        "idrid_jax": times["idrid_jax"].median / count**2,
        "scikit-image": times["scikit-image"].median / SAMPLE,
    }
    ratio = per_pair["scikit-image"] / per_pair["idrid_jax"]
    machine = report.machine()
    for side, seconds in per_pair.items():
        row = {
            "bench": "evaluate",
            "side": side,
            "size": size,
            "channels": channels,
            "pairs": count**2 if side == "idrid_jax" else SAMPLE,
            "pairs_per_s": round(1 / seconds, 1),
            "images_per_s": round(1 / seconds / count, 3),  # each against all `count` of the other set
            "us_per_pair": round(seconds * 1e6, 3),
            "ratio": round(ratio, 2),
            "ssim_apart": float(apart[0]),
            "psnr_apart_db": float(apart[1]),
        }
        report.emit(row | machine)
    rows = [(side, f"{1 / seconds:,.0f}", f"{seconds * 1e6:,.1f}") for side, seconds in per_pair.items()]
    print("\n" + report.table(("side", "pairs/s", "us a pair"), rows))
    print(f"{ratio:,.0f} times as fast; apart by at most {apart[0]:.1e} in SSIM, {apart[1]:.1e} dB in PSNR")


def _smooth(rng, count, size, channels):
    """float32 [count, size, size, channels] in [0, 1]."""
    coarse = rng.random((count, size // 4 + 2, size // 4 + 2, channels), np.float32)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return (0.8 * fine + 0.2 * rng.random(fine.shape, np.float32)).astype(np.float32)
