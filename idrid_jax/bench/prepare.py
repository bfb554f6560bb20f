"""`idrid-jax bench prepare`: preprocessing of photographs, compared with decoding alone.

The work is that of filling a cache (`data.cache`), in the same threads, from bytes in memory, so that the disk is not
measured. A JPEG can be decoded directly at 1/2, 1/4 or 1/8 of its size, which saves most of the time.
"""

import math
from collections.abc import Callable

import numpy as np

from idrid_jax.batching import map_in_threads
from idrid_jax.bench import report, timing
from idrid_jax.data.phantom import encode, make_photograph
from idrid_jax.data.preprocess import OVERSAMPLING, check_options, decode_image, preprocess
from idrid_jax.data.release import GRADES, read_release
from idrid_jax.errors import UserError

MAX_PHOTOGRAPHS = 24  # of a release
NUM_PHANTOMS, WIDTH, HEIGHT = 6, 4288, 2848  # the size of IDRiD's photographs


def run(release: str, *, size: int, channels: int, crop: str, rounds: int) -> None:
    """Print a JSON line for each side and a table.

    release: folder of a release; "" generates phantoms of IDRiD's size.

    Raises UserError for invalid options, a folder without a release, or an unreadable photograph.
    """
    check_options(size, channels, crop)
    photographs = _photographs(release)
    sides = {
        "prepare": lambda data, name: preprocess(data, name, size=size, channels=channels, crop=crop),
        "decode at that scale": lambda data, name: decode_image(data, name, math.ceil(OVERSAMPLING * size)),
        "decode in full": decode_image,
    }
    machine = report.describe_machine()
    times = timing.time_interleaved({name: _in_threads(photographs, work) for name, work in sides.items()}, rounds)
    decoding = times["decode at that scale"].median
    rows = []
    for name, side in times.items():
        seconds = side.median / len(photographs)
        low, high = (quartile / len(photographs) * 1e3 for quartile in side.quartiles)
        row = {
            "benchmark": "prepare",
            "side": name,
            "size": size,
            "channels": channels,
            "crop": crop,
            "photographs": len(photographs),
            "release": release or "phantom",
            "images_per_s": round(1 / seconds, 2),
            "ms_per_photograph": round(seconds * 1e3, 3),
            "ms_quartiles": [round(low, 3), round(high, 3)],
            "ratio_to_decoding": round(side.median / decoding, 3),
        }
        report.print_row(row | machine)
        ms = f"{seconds * 1e3:.2f}", f"{low:.2f}-{high:.2f}"
        rows.append((name, f"{1 / seconds:.1f}", *ms, f"{side.median / decoding:.2f}"))
    print("\n" + report.format_table(("side", "photographs/s", "ms each", "quartiles", "x decoding"), rows))


def _photographs(release: str) -> list[tuple[bytes, str]]:
    """Return (bytes, name) of the first graded photographs of a release, or of phantoms."""
    if release:
        records = read_release(release).grading[:MAX_PHOTOGRAPHS]
        if not records:
            raise UserError(f"--release {release}: contains no graded photograph (part B)")
        return [(record.image.read(), str(record.image)) for record in records]
    report.log(f"no --release: {NUM_PHANTOMS} phantoms of {WIDTH}x{HEIGHT}, which decode faster than photographs")
    phantoms = [
        make_photograph(np.random.default_rng(seed), seed % len(GRADES), HEIGHT, WIDTH) for seed in range(NUM_PHANTOMS)
    ]
    return [(encode(phantom.image), f"phantom {number}") for number, phantom in enumerate(phantoms)]


def _in_threads(photographs, work: Callable) -> Callable[[], None]:
    def side():
        for _ in map_in_threads(work, iter(photographs)):
            pass

    return side
