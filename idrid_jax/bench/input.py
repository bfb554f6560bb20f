"""`idrid-jax bench input`: how fast both input pipelines are, and what the training loop costs beyond the bare step.

The bare step is the compiled update on one batch that stays on the devices. Three measurements, each interleaved with
what it is compared to; a ratio is the median of the ratios of single rounds:

    from_disk   the prepared split from disk to the devices without a step: at once (resident) or by batches (tfdata)
    steps       steps on real batches: the share of the time that the loop waits for data, and the rate relative to bare
                steps, which also contains the processor time that reading takes from the step
    train_loop  `train` as the command runs it, with snapshots and logs, relative to bare steps
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
from idrid_jax.bench.timing import Times, time_interleaved
from idrid_jax.data import phantom
from idrid_jax.data.pipeline import choose_pipeline, host_batches, is_sharded, resident
from idrid_jax.data.prepare import prepare
from idrid_jax.data.splits import find_release, load_split
from idrid_jax.errors import UserError
from idrid_jax.evaluation.snapshot_metrics import SnapshotMetrics
from idrid_jax.models import NETWORKS
from idrid_jax.training import loop, sharding, train_step
from idrid_jax.training.state import fresh_state

PIPELINES = ("resident", "tfdata") if importlib.util.find_spec("tensorflow") else ("resident",)
STEP_ROUNDS = 15  # of the measurement "steps"
MIN_SPANS = 8  # spans between snapshots of the measurement "train_loop"


def default_config() -> ml_collections.ConfigDict:
    """Return dcgan28 as in the thesis: batches of 128, uncropped photographs."""
    config = config_lib.default_config()
    config.network, config.data.crop = "dcgan28", "letterbox"
    return config


def run(config: ml_collections.ConfigDict | None, seconds: float) -> list[dict]:
    """Measure for about `seconds`, excluding compilation; print a JSON line per result and a table, and return the
    rows.

    config: None for `default_config`. If it names no release, the newest prepared one is used, or a phantom where there
      is none.

    Raises UserError where `train` would.
    """
    config = config or default_config()
    config = config_lib.validated(config)
    mesh = sharding.mesh_from_config(config, NETWORKS[config.network].size)
    with tempfile.TemporaryDirectory(prefix="idrid-jax-bench-") as scratch:
        config, manifest = _find_or_make_release(config, Path(scratch))
        release = f"{manifest.name} ({manifest.fingerprint[:12]})"
        report.log(f"{config.network}, batch {config.batch_size}, training split of {release}")
        if "tfdata" not in PIPELINES:
            report.log("TensorFlow is not installed: tfdata is skipped")
        bare = _Side(config, mesh, manifest, "")
        common = {
            "network": config.network,
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            "release": release,
        } | report.describe_machine()
        rows = []
        for measurement in (
            lambda: _from_disk(config, mesh, manifest, seconds / 12),
            lambda: _steps(config, mesh, manifest, bare, seconds / 3),
            lambda: _train_loop(config, mesh, manifest, bare, Path(scratch), seconds / 2),
        ):
            for row in measurement():
                report.print_row({"benchmark": "input"} | row | common)
                rows.append(row)
    print("\n" + _table(rows, config))
    return rows


def _find_or_make_release(config, scratch: Path):
    try:
        return config, find_release(config)
    except UserError:
        if config.data.release or config.data.data_dir:
            raise
    report.log("no release is prepared on this machine: generating a phantom")
    phantom.make_release(scratch / "phantom", height=64, segmentation=(0, 0), localization=False)
    manifest, _ = prepare(scratch / "phantom", scratch / "data", tfds=False)
    config = config.copy_and_resolve_references()
    config.data.data_dir = str(scratch / "data")
    return config, manifest


# From disk to the devices


def _from_disk(config, mesh, manifest, seconds: float) -> list[dict]:
    """Measure both pipelines without a step. The file is dropped from the page cache before each round, if possible."""
    split = load_split(config, manifest, "train")
    batches = host_batches(config, split, 0) if "tfdata" in PIPELINES else iter(())
    num_batches = -(-len(split.grades) // config.batch_size)  # of a round: at least as many images as the split
    read = jax.jit(lambda x: jnp.max(x))  # on a CPU `put` may map the file without reading it

    def load_resident():
        _drop_pages(split.images)
        images, _ = resident.put(split, mesh, sharded=is_sharded(config, split, mesh))
        return read(images)

    def load_batches():
        _drop_pages(split.images)
        return [read(sharding.to_global(next(batches)[0][None], mesh)) for _ in range(num_batches)]

    sides = {name: {"resident": load_resident, "tfdata": load_batches}[name] for name in PIPELINES}
    num_images = {"resident": len(split.grades), "tfdata": num_batches * config.batch_size}
    times = time_interleaved(sides, _num_rounds(sides, seconds))
    return [
        {"measurement": "from_disk", "pipeline": name, **_rate(num_images[name], times[name])} for name in PIPELINES
    ]


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


# Steps in a row


class _Side:
    """The compiled step of an input pipeline ("" for the bare step) with its own state."""

    def __init__(self, config, mesh, manifest, pipeline: str):
        config = config.copy_and_resolve_references()
        self.wait_s = 0.0
        self._state = fresh_state(config, mesh)
        split = load_split(config, manifest, "train")
        if pipeline:
            config.data.pipeline = pipeline
            self._step = train_step.make_train_step(config, mesh, split, 0)
        else:
            index = np.arange(config.batch_size) % len(split.grades)
            self._step = train_step.make_fixed_batch_step(config, mesh, split.images[index], split.grades[index])

    def __call__(self, num_steps: int) -> dict[str, jax.Array]:
        """Dispatch the steps in a row and return the last metrics; add the seconds of waiting for data to `wait_s`."""
        for _ in range(num_steps):
            start = time.perf_counter()
            data = self._step.next_data()
            self.wait_s += time.perf_counter() - start
            self._state, metrics = self._step.jitted(self._state, *data)
        return metrics


def _steps(config, mesh, manifest, bare: _Side, seconds: float) -> list[dict]:
    sides = {"bare": bare} | {name: _Side(config, mesh, manifest, name) for name in PIPELINES}
    for side in sides.values():
        _seconds(lambda: side(1))  # compiles
    count = max(2, round(seconds / (STEP_ROUNDS * len(sides)) / _seconds(lambda: bare(5)) * 5))
    for side in sides.values():
        side.wait_s = 0.0
    calls = {name: lambda side=side: side(count) for name, side in sides.items()}
    times = time_interleaved(calls, STEP_ROUNDS, warm_up=0)
    rows = []
    for name, side in sides.items():
        row = {"measurement": "steps", "pipeline": name, "steps": count}
        row |= _rate(count * config.batch_size, times[name])
        if name in PIPELINES:
            row["wait_fraction"] = round(side.wait_s / sum(times[name].seconds), 4)
            row |= _relative_to_bare(times["bare"].seconds, times[name].seconds)
        rows.append(row)
    return rows


# The training loop


def _train_loop(config, mesh, manifest, bare: _Side, scratch: Path, seconds: float) -> list[dict]:
    """Interleave `train` with bare steps, which run as snapshot metrics, outside its measured time.

    Snapshots are more frequent than configured, so that there are several; the cost of one gives the rate at the
    configured interval.
    """
    configured_interval = config_lib.steps(config.snapshot_kimg, config)
    config = config.copy_and_resolve_references()
    step_s = _seconds(lambda: bare(10)) / 10
    interval = max(4, min(configured_interval, int(seconds / MIN_SPANS / 1.5 / step_s)))
    spans = max(MIN_SPANS, min(50, int(seconds / 1.5 / step_s / interval)))
    config.snapshot_kimg = interval * config.batch_size / 1000
    config.total_kimg = config.snapshot_kimg * (1 + spans)  # the first span compiles
    starts, ends, bare_step_s = [], [], []

    def run_bare_steps():
        starts.append(time.perf_counter())
        bare_step_s.append(_seconds(lambda: bare(interval // 2)) / (interval // 2))
        ends.append(time.perf_counter())
        return {}

    report.log(f"train: {spans} times {interval} steps and a snapshot")
    metrics = SnapshotMetrics(best=config.checkpoint.best)
    loop.train(config, scratch / "run", snapshot_metrics=lambda *arguments: metrics(*arguments) | run_bare_steps())
    # A span of the loop lies between two runs of bare steps; it is compared with their mean
    times = Times(tuple(start - end for end, start in zip(ends[-1 - spans :], starts[-spans:])))
    step_means = [(before + after) / 2 for before, after in zip(bare_step_s[-1 - spans :], bare_step_s[-spans:])]
    bare_spans = [mean * interval for mean in step_means]
    snapshot_s = statistics.median(span - bare_span for span, bare_span in zip(times.seconds, bare_spans))
    configured_s = configured_interval * statistics.median(step_means)
    row = {
        "measurement": "train_loop",
        "pipeline": choose_pipeline(config, load_split(config, manifest, "train"), mesh),
        "steps": interval,
        **_rate(interval * config.batch_size, times),
        **_relative_to_bare(bare_spans, times.seconds),
        "snapshot_kimg": config.snapshot_kimg,
        "snapshot_s": round(snapshot_s, 4),
        "relative_to_bare_as_configured": round(1 / (1 + snapshot_s / configured_s), 4),
    }
    return [row]


# Rows and table


def _seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(side())
    return time.perf_counter() - start


def _num_rounds(sides, seconds: float) -> int:
    for side in sides.values():
        side()
    return max(3, min(30, int(seconds / sum(_seconds(side) for side in sides.values()))))


def _rate(num_images: int, times: Times) -> dict:
    low, high = times.quartiles
    return {
        "images_per_s": round(num_images / times.median, 1),
        "images_per_s_quartiles": [round(num_images / high, 1), round(num_images / low, 1)],
        "rounds": len(times.seconds),
    }


def _relative_to_bare(bare: Sequence[float], seconds: Sequence[float]) -> dict:
    ratios = [b / s for b, s in zip(bare, seconds)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "relative_to_bare": round(statistics.median(ratios), 4),
        "relative_to_bare_quartiles": [round(low, 4), round(high, 4)],
    }


def _table(rows: list[dict], config: ml_collections.ConfigDict) -> str:
    cells, notes = [], []
    for row in rows:
        low, high = row["images_per_s_quartiles"]
        name = f"{row['measurement']}, {row['pipeline']}"
        relative = None
        if "relative_to_bare" in row:
            relative = "{:.1%} ({:.1%} to {:.1%})".format(row["relative_to_bare"], *row["relative_to_bare_quartiles"])
        if row["measurement"] == "train_loop":
            name += f", snapshot every {row['snapshot_kimg']:.3g} kimg"
            notes.append(
                f"A snapshot costs {row['snapshot_s']:.2f} s. At the configured interval of {config.snapshot_kimg:g} "
                f"kimg, train runs at {row['relative_to_bare_as_configured']:.1%} of the bare step's rate."
            )
        wait = f"{row['wait_fraction']:.2%}" if "wait_fraction" in row else None
        cells.append([name, f"{row['images_per_s']:,.0f}", f"{low:,.0f} to {high:,.0f}", wait, relative])
    header = ["", "images/s", "quartiles", "waiting for data", "relative to the bare step"]
    return "\n".join([report.format_table(header, cells), *notes])
