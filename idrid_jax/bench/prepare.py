"""`idrid-jax bench prepare`: photographs made into square arrays, beside what merely decoding them takes.

The work is that of filling a cache (`data.cache`), in the same threads, from bytes in memory: what the disk gives is
not what is measured. JPEG can be decoded at 1/2, 1/4 or 1/8 by itself, which is where most of the time is saved.
"""

import math
from collections.abc import Callable

import numpy as np

from idrid_jax.bench import report, timing
from idrid_jax.data.cache import in_threads
from idrid_jax.data.phantom import draw_photograph, encode
from idrid_jax.data.preprocess import OVERSAMPLING, check_options, load, preprocess
from idrid_jax.data.release import GRADES, read_release
from idrid_jax.errors import UserError

MOST = 24  # photographs of a release that are taken
DRAWN, WIDTH, HEIGHT = 6, 4288, 2848  # IDRiD's own size


def run(release: str, *, size: int, channels: int, crop: str, rounds: int) -> None:
    """Prints a JSON line for each side and a table. release: "" draws photographs of IDRiD's size.

    Raises UserError for options that cannot be, a folder without a release, and a photograph that cannot be read.
    """
    check_options(size, channels, crop)
    photographs = _photographs(release)
    sides = {
        "prepare": lambda data, name: preprocess(data, name, size=size, channels=channels, crop=crop),
        "decode at that scale": lambda data, name: load(data, name, math.ceil(OVERSAMPLING * size)),
        "decode in full": load,
    }
    machine = report.machine()
    times = timing.interleaved({name: _over(photographs, side) for name, side in sides.items()}, rounds)
    alone = times["decode at that scale"].median
    rows = []
    for name, taken in times.items():
        seconds = taken.median / len(photographs)
        low, high = (quartile / len(photographs) * 1e3 for quartile in taken.quartiles)
        row = {
            "bench": "prepare",
            "side": name,
            "size": size,
            "channels": channels,
            "crop": crop,
            "photographs": len(photographs),
            "release": release or "drawn",
            "images_per_s": round(1 / seconds, 2),
            "ms_per_photograph": round(seconds * 1e3, 3),
            "ms_quartiles": [round(low, 3), round(high, 3)],
            "ratio_to_decoding": round(taken.median / alone, 3),
        }
        report.emit(row | machine)
        ms = f"{seconds * 1e3:.2f}", f"{low:.2f}-{high:.2f}"
        rows.append((name, f"{1 / seconds:.1f}", *ms, f"{taken.median / alone:.2f}"))
    print("\n" + report.table(("side", "photographs/s", "ms each", "quartiles", "x decoding"), rows))


def _photographs(release: str) -> list[tuple[bytes, str]]:
    """(bytes, name) of the first graded photographs, or of drawn ones of IDRiD's size."""
    if release:
        records = read_release(release).grading[:MOST]
        if not records:
            raise UserError(f"--release {release}: no graded photograph (part B) is there")
        return [(record.image.read(), str(record.image)) for record in records]
    report.note(f"no --release: {DRAWN} drawn photographs of {WIDTH}x{HEIGHT}, which decode faster than real ones")
    drawn = (draw_photograph(np.random.default_rng(seed), seed % len(GRADES), HEIGHT, WIDTH) for seed in range(DRAWN))
    return [(encode(phantom.image), f"drawn {number}") for number, phantom in enumerate(drawn)]


def _over(photographs, work: Callable) -> Callable[[], None]:
    def side():
        for _ in in_threads(work, iter(photographs)):
            pass

    return side
