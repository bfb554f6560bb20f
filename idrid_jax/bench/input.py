"""Times both ways in and the whole training loop beside the bare step: `idrid-jax bench input`.

The bare step is the compiled update on one batch that lies on the devices. Three things are measured:

    from disk   the prepared split to the devices without a step: all at once (resident), or batch by batch (stream)
    steps       on real batches: the share of the time that the loop is held up by getting them, and their rate beside
                that of bare steps, which also has what reading them takes from the processors
    loop        `train` as the command runs it, with its snapshots and logs, beside bare steps

Sides are measured in turns in one run; a ratio or a share is the median of those of single rounds.
"""

import importlib.util
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from idrid_jax import config as config_lib
from idrid_jax.bench import report
from idrid_jax.bench.timing import Times, interleaved
from idrid_jax.data import phantom
from idrid_jax.data.pipeline import choose_pipeline, host_batches, is_sharded, resident
from idrid_jax.data.prepare import prepare
from idrid_jax.data.splits import find_release, load_split
from idrid_jax.errors import UserError
from idrid_jax.evaluation.snapshot_metrics import SnapshotMetrics
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import build, loop, train_step
from idrid_jax.training import sharding as mesh_lib

WAYS = ("resident", "tfdata") if importlib.util.find_spec("tensorflow") else ("resident",)
ROUNDS = 15  # of steps in a row
SPANS = 8  # between snapshots of the loop, at least


def default_config() -> ml_collections.ConfigDict:
    """dcgan28 as the thesis has it: batches of 128, whole frames."""
    config = config_lib.default_config()
    config.network, config.data.crop = "dcgan28", "letterbox"
    return config


def run(config: ml_collections.ConfigDict | None, seconds: float) -> list[dict]:
    """Measures for about so many seconds, compilation left out; prints, and returns what it printed.

    config: None for `default_config`. Its release must be prepared if it names one; else the release prepared last is
    taken, or where there is none, a made-up one. Raises UserError where `train` would.
    """
    config = config or default_config()
    config_lib.check(config)
    mesh = mesh_lib.of_config(config, NETWORKS[config.network].size)
    with tempfile.TemporaryDirectory(prefix="idrid-jax-bench-") as scratch:
        config, manifest = _release(config, Path(scratch))
        name = f"{manifest.name} ({manifest.fingerprint[:12]})"
        report.note(f"{config.network}, batch {config.batch_size}, training split of {name}")
        if "tfdata" not in WAYS:
            report.note("TensorFlow is not installed: stream is left out")
        bare = _Steps(config, mesh, manifest, "bare")
        rows = []
        for measured in (
            _from_disk(config, mesh, manifest, seconds / 12),
            _steps(config, mesh, manifest, bare, seconds / 3),
            _loop(config, mesh, bare, Path(scratch), seconds / 2),
        ):
            for row in measured:
                about = {"network": config.network, "batch": config.batch_size, "dtype": config.dtype, "release": name}
                report.emit({"bench": "input", **row, **about, **report.machine()})
                rows.append(row)
    print("\n" + _table(rows, config))
    return rows


def _release(config, scratch):
    try:
        return config, find_release(config)
    except UserError:
        if config.data.release or config.data.data_dir:
            raise
    report.note("no release is prepared here: drawing one")
    phantom.draw_release(scratch / "phantom", height=64, segmentation=(0, 0), localization=False)
    manifest, _ = prepare(scratch / "phantom", scratch / "data", tfds=False)
    config = config.copy_and_resolve_references()
    config.data.data_dir = str(scratch / "data")
    return config, manifest


# -- From disk to the devices


def _from_disk(config, mesh, manifest, seconds):
    """The file's pages are dropped from memory before each round, where the system lets us."""
    split = load_split(config, manifest, "train")
    batches = host_batches(config, split, 0) if "tfdata" in WAYS else iter(())
    count = -(-len(split.grades) // config.batch_size)  # batches of a round: as many images as the split has, or more
    read = jax.jit(lambda x: jnp.max(x))  # on a CPU `put` may map the file, which is not to have read it

    def whole():
        _drop_pages(split.images)
        images, _ = resident.put(split, mesh, sharded=is_sharded(config, split, mesh))
        return read(images)

    def by_batches():
        _drop_pages(split.images)
        return [read(mesh_lib.to_global(next(batches)[0][None], mesh)) for _ in range(count)]

    sides = {way: {"resident": whole, "tfdata": by_batches}[way] for way in WAYS}
    images = {"resident": len(split.grades), "tfdata": count * config.batch_size}
    times = interleaved(sides, _rounds(sides, seconds))
    return [{"what": "from disk", "way": way, **_rate(images[way], times[way])} for way in WAYS]


def _drop_pages(images: np.ndarray) -> None:
    mapping, filename = getattr(images, "_mmap", None), getattr(images, "filename", None)
    if mapping is None or filename is None or not hasattr(os, "posix_fadvise") or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapping.madvise(mmap.MADV_DONTNEED)
    handle = os.open(filename, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


# -- Steps in a row


class _Steps:
    """A fresh state and the compiled step of one way in, or the bare one."""

    def __init__(self, config, mesh, manifest, way):
        config = config.copy_and_resolve_references()
        update, init = build.make_update(config, *build_networks(config))
        self.held_up = 0.0
        self._state = build.fresh_state(config, init, mesh)
        split = load_split(config, manifest, "train")
        if way == "bare":
            some = np.arange(config.batch_size) % len(split.grades)
            self._step = train_step.compile_bare_step(config, update, mesh, split.images[some], split.grades[some])
        else:
            config.data.pipeline = way
            self._step = train_step.compile_step(config, update, mesh, split, 0)

    def __call__(self, count: int) -> dict[str, jax.Array]:
        """The metrics of the last of so many steps, dispatched in a row; adds to `held_up` the seconds it waited for
        data."""
        for _ in range(count):
            start = time.perf_counter()
            data = self._step.data()
            self.held_up += time.perf_counter() - start
            self._state, metrics = self._step.jitted(self._state, *data)
        return metrics


def _steps(config, mesh, manifest, bare, seconds):
    steps = {"bare": bare} | {way: _Steps(config, mesh, manifest, way) for way in WAYS}
    for side in steps.values():
        _seconds(lambda: side(1))  # compiles
    count = max(2, round(seconds / (ROUNDS * len(steps)) / _seconds(lambda: bare(5)) * 5))
    for side in steps.values():
        side.held_up = 0.0
    times = interleaved({name: lambda side=side: side(count) for name, side in steps.items()}, ROUNDS, warm_up=0)
    rows = []
    for name, side in steps.items():
        row = {"what": "steps", "way": name, "steps": count, **_rate(count * config.batch_size, times[name])}
        if name in WAYS:
            row["waiting"] = round(side.held_up / sum(times[name].seconds), 4)
            row |= _of_bare(times["bare"].seconds, times[name].seconds)
        rows.append(row)
    return rows


# -- The whole loop


def _loop(config, mesh, bare, scratch, seconds):
    """`train` in turns with bare steps: its last `on_snapshot` runs them, off the clock of the loop.

    Snapshots come oftener than the configuration has them, so that there are several in the time; what one costs gives
    the rate at the configuration's own interval.
    """
    wanted = config_lib.steps(config.snapshot_kimg, config)
    config = config.copy_and_resolve_references()
    step = _seconds(lambda: bare(10)) / 10
    every = max(4, min(wanted, int(seconds / SPANS / 1.5 / step)))
    spans = max(SPANS, min(50, int(seconds / 1.5 / step / every)))
    config.snapshot_kimg = every * config.batch_size / 1000
    config.total_kimg = config.snapshot_kimg * (1 + spans)  # the first span has compiled
    entered, left, beside = [], [], []

    def alternate(*_):
        entered.append(time.perf_counter())
        beside.append(_seconds(lambda: bare(every // 2)) / (every // 2))
        left.append(time.perf_counter())
        return {}

    report.note(f"train: {spans} times {every} steps and a snapshot")
    manifest = find_release(config)
    measures = SnapshotMetrics(manifest.folder / "features", best=config.checkpoint.best)
    loop.train(config, scratch / "run", on_snapshot=(measures, alternate))
    times = Times(tuple(after - before for before, after in zip(left[-1 - spans :], entered[-spans:])))
    steps = [(before + after) / 2 for before, after in zip(beside[-1 - spans :], beside[-spans:])]
    bare_spans = [step * every for step in steps]
    cost = statistics.median(span - step for span, step in zip(times.seconds, bare_spans))
    row = {
        "what": "loop",
        "way": choose_pipeline(config, load_split(config, manifest, "train"), mesh),
        "steps": every,
        **_rate(every * config.batch_size, times),
        **_of_bare(bare_spans, times.seconds),
        "snapshot_kimg": config.snapshot_kimg,
        "snapshot_s": round(cost, 4),
        "of_bare_as_configured": round(1 / (1 + cost / (wanted * statistics.median(steps))), 4),
    }
    return [row]


# -- What is said of it


def _seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(side())
    return time.perf_counter() - start


def _rounds(sides, seconds) -> int:
    for side in sides.values():
        side()
    return max(3, min(30, int(seconds / sum(_seconds(side) for side in sides.values()))))


def _rate(images: int, times: Times) -> dict:
    low, high = times.quartiles
    return {
        "images_per_s": round(images / times.median, 1),
        "quartiles": [round(images / high, 1), round(images / low, 1)],
        "rounds": len(times.seconds),
    }


def _of_bare(bare: Sequence[float], seconds: Sequence[float]) -> dict:
    ratios = [b / s for b, s in zip(bare, seconds)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"of_bare": round(statistics.median(ratios), 4), "of_bare_quartiles": [round(low, 4), round(high, 4)]}


def _table(rows: list[dict], config: ml_collections.ConfigDict) -> str:
    cells, notes = [], []
    for row in rows:
        low, high = row["quartiles"]
        name = f"{row['what']}, {row['way']}"
        beside = None
        if "of_bare" in row:
            beside = "{:.1%} ({:.1%} to {:.1%})".format(row["of_bare"], *row["of_bare_quartiles"])
        if row["what"] == "loop":
            name += f", a snapshot every {row['snapshot_kimg']:.3g} kimg"
            notes.append(
                f"A snapshot costs {row['snapshot_s']:.2f} s: one every {config.snapshot_kimg:g} kimg, as configured, "
                f"leaves {row['of_bare_as_configured']:.1%} of the bare step's rate."
            )
        waiting = f"{row['waiting']:.2%}" if "waiting" in row else None
        cells.append([name, f"{row['images_per_s']:,.0f}", f"{low:,.0f} to {high:,.0f}", waiting, beside])
    header = ["", "images/s", "quartiles", "waiting for data", "of the bare step's rate"]
    return "\n".join([report.table(header, cells), *notes])
