"""`idrid-jax bench evaluate`: PSNR and SSIM of all pairs of two image sets, compared with scikit-image.

Our side runs the functions of `evaluate` on all pairs. scikit-image runs on a sample, because all pairs would take
hours; times are per pair, and the values of both sides are compared on that sample.
"""

import importlib.util

import numpy as np

from idrid_jax.bench import report, timing
from idrid_jax.errors import UserError

NUM_SAMPLED_PAIRS = 12  # of scikit-image in a round


def run(*, size: int, channels: int, count: int, rounds: int) -> None:
    """Print a JSON line for each side and a table. The images are random; the time does not depend on them.

    Raises UserError for invalid sizes, or if scikit-image is not installed.
    """
    if importlib.util.find_spec("skimage") is None:
        raise UserError("scikit-image is not installed: pip install 'idrid_jax[test]' or bash launch/install.sh test")
    if size < 11:
        raise UserError(f"--size {size}: the window of SSIM is 11 pixels wide; choose at least 11")
    if channels not in (1, 3):
        raise UserError(f"--channels {channels}: must be 1 (grey) or 3 (RGB)")
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    from idrid_jax.evaluation.image_quality import psnr_pairs, ssim_pairs

    rng = np.random.default_rng(0)
    a, b = (_smooth_images(rng, count, size, channels) for _ in range(2))
    pairs = [tuple(pair) for pair in rng.integers(0, count, (NUM_SAMPLED_PAIRS, 2))]
    options = dict(channel_axis=-1, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)

    def scikit_image():
        return [
            (structural_similarity(a[i], b[j], **options), peak_signal_noise_ratio(a[i], b[j], data_range=1.0))
            for i, j in pairs
        ]

    def ours():
        return ssim_pairs(a, b), psnr_pairs(a, b)

    times = timing.time_interleaved({"idrid_jax": ours, "scikit-image": scikit_image}, rounds)
    values = [np.asarray(array) for array in ours()]
    differences = np.abs(np.array(scikit_image()) - [[array[i, j] for array in values] for i, j in pairs]).max(axis=0)
    num_pairs = {"idrid_jax": count**2, "scikit-image": NUM_SAMPLED_PAIRS}
    seconds_per_pair = {side: times[side].median / number for side, number in num_pairs.items()}
    speedup = seconds_per_pair["scikit-image"] / seconds_per_pair["idrid_jax"]
    machine = report.describe_machine()
    for side, seconds in seconds_per_pair.items():
        row = {
            "benchmark": "evaluate",
            "side": side,
            "size": size,
            "channels": channels,
            "pairs": num_pairs[side],
            "pairs_per_s": round(1 / seconds, 1),
            "images_per_s": round(1 / seconds / count, 3),  # each compared with all `count` of the other set
            "us_per_pair": round(seconds * 1e6, 3),
            "speedup": round(speedup, 2),
            "max_ssim_difference": float(differences[0]),
            "max_psnr_difference_db": float(differences[1]),
        }
        report.print_row(row | machine)
    rows = [(side, f"{1 / seconds:,.0f}", f"{seconds * 1e6:,.1f}") for side, seconds in seconds_per_pair.items()]
    print("\n" + report.format_table(("side", "pairs/s", "us per pair"), rows))
    print(
        f"idrid_jax is {speedup:,.0f} times as fast; the largest differences are {differences[0]:.1e} in SSIM and "
        f"{differences[1]:.1e} dB in PSNR"
    )


def _smooth_images(rng, count, size, channels):
    """Return float32 [count, size, size, channels] in [0, 1]."""
    coarse = rng.random((count, size // 4 + 2, size // 4 + 2, channels), np.float32)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return (0.8 * fine + 0.2 * rng.random(fine.shape, np.float32)).astype(np.float32)
