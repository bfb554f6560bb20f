"""Logs of a run: the console, stats.jsonl, TensorBoard, image files, and curves.png."""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from idrid_jax.data import atomic
from idrid_jax.tensorboard import EventFile
from idrid_jax.training.run_dir import RunDir

CONSOLE_METRICS = {"loss_d": "Loss_D", "loss_g": "Loss_G", "d_real": "D(x)", "d_fake_after": "D(G(z))"}

PENALTIES = "penalties and other loss terms, before their weights"  # a panel for runs that have any
PANELS = (  # title, {key in stats.jsonl: label}
    ("adversarial losses (binary cross-entropy: D's is the sum of both halves)", {"loss_d": "D", "loss_g": "G"}),
    (
        "D's mean probability of being real",
        {"d_real": "D(x)", "d_fake_before": "D(G(z)) before D's update", "d_fake_after": "D(G(z)) after"},
    ),
    ("gradient norms", {"grad_norm_d": "D", "grad_norm_g": "G"}),
    (
        PENALTIES,
        {
            "r1": "R1: |gradient of D|^2 on real images",
            "r2": "R2: on generated images",
            "gradient_penalty": "gradient penalty between them",
            "lecam": "LeCam",
            "feature_matching": "feature matching",
        },
    ),
    ("KID of generated images to the validation photographs", {"kid_imagenet": "ImageNet features"}),
    (
        "similarity of generated images: SSIM above that of real ones (collapse: 0.1), spread of features over theirs",
        {"ssim_excess": "SSIM, excess", "diversity": "spread of features"},
    ),
)


class Log:
    """Writes the metrics and images of one run. Use as a context manager: leaving it plots curves.png.

    `console`: "bar" is a progress bar with images/s, kimg and remaining time (lines if stderr is not a terminal);
    "thesis" prints the thesis's line (4.4): [epoch/epochs][batch/batches] Loss_D Loss_G D(x) D(G(z)) before / after D's
    update.
    """

    def __init__(
        self, workdir: Path, *, total_images: int, first_step: int, batch_size: int, epoch_images: int, console: str
    ):
        """Continue after `first_step`: rows of later steps, which a killed run left in stats.jsonl, are removed."""
        self._paths, self._batch_size, self._total, self._console = RunDir(workdir), batch_size, total_images, console
        self._epoch_batches = max(1, epoch_images // batch_size)
        self._start = time.monotonic()
        _truncate_stats(workdir, first_step)
        self._stats = self._paths.stats.open("a")
        # A resumed run keeps what was logged at `first_step` itself; a fresh run replaces its step 0
        purge_step = first_step * batch_size + (first_step > 0)
        self._events = EventFile(self._paths.tensorboard, purge_step)
        self.start_clock(first_step)
        self._bar = tqdm(
            total=total_images / 1000,
            initial=first_step * batch_size / 1000,
            unit="kimg",
            disable=console != "bar" or not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}] {postfix}",
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
        try:
            self._events.close()
            self._stats.close()
        finally:
            plot_curves(self._paths.path)

    def start_clock(self, step: int) -> None:
        """Start measuring images/s: after the first step, which compiles, and after a snapshot."""
        self._clock, self._clock_step = time.monotonic(), step

    def read_clock(self, step: int) -> float:
        """Return images/s since the clock was started, and start it again."""
        rate = (step - self._clock_step) * self._batch_size / max(time.monotonic() - self._clock, 1e-9)
        self.start_clock(step)
        return rate

    def scalars(
        self, step: int, rows: list[dict[str, float]], rate: float, metrics: dict[str, float] | None = None
    ) -> None:
        """Log the means of `rows`, the metrics of every step since the last call, with images/s and the metrics of a
        snapshot."""
        images, metrics = step * self._batch_size, metrics or {}
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        seconds = round(time.monotonic() - self._start, 3)
        record = {"step": step, "kimg": images / 1000, "seconds": seconds, "images_per_s": round(rate, 2)}
        self._stats.write(json.dumps(record | means | metrics) + "\n")
        self._stats.flush()
        for name, value in {**means, **metrics, "images_per_s": rate}.items():
            self._events.scalar(name, value, images)
        self._events.flush()
        self._print_progress(step, rows[-1], means, rate)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Write `name`.png, whole or not at all, and add the image to TensorBoard."""
        file = io.BytesIO()
        image.save(file, format="PNG")
        atomic.write_bytes(self._paths.image(name), png := file.getvalue(), flush=False)
        channels = len(image.getbands())
        self._events.image(name.split("_")[0], png, image.size, channels, step * self._batch_size)

    def message(self, text: str) -> None:
        """Print a line on stderr, above the progress bar."""
        self._bar.write(text, file=sys.stderr) if not self._bar.disable else print(text, file=sys.stderr, flush=True)

    def _print_progress(self, step, last, means, rate):
        images = step * self._batch_size
        if self._console == "thesis":
            epoch, batch = divmod(step - 1, self._epoch_batches)
            epochs = -(-self._total // (self._epoch_batches * self._batch_size))
            print(
                f"[{epoch}/{epochs}][{batch}/{self._epoch_batches}] "
                f"Loss_D: {last['loss_d']:.4f} Loss_G: {last['loss_g']:.4f} "
                f"D(x): {last['d_real']:.4f} D(G(z)): {last['d_fake_before']:.4f} / {last['d_fake_after']:.4f}",
                flush=True,
            )
            return
        numbers = " ".join(f"{label} {means[name]:.3f}" for name, label in CONSOLE_METRICS.items())
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{rate:.0f} images/s {numbers}", refresh=False)
            self._bar.update(images / 1000 - self._bar.n)
            return
        remaining = (
            f"{(self._total - images) / rate / 60:.1f} min left, " if rate else ""
        )  # 0 at the step that compiled
        print(
            f"{images / 1000:.1f}/{self._total / 1000:.1f} kimg, {rate:.0f} images/s, {remaining}{numbers}",
            file=sys.stderr,
            flush=True,
        )


class NullLog(contextlib.nullcontext):
    """The log of all processes but the first: every method does nothing."""

    def __init__(self):
        super().__init__(self)

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def plot_curves(workdir: Path) -> None:
    """Write `workdir/curves.png` from `workdir/stats.jsonl`, whole or not at all."""
    from matplotlib.figure import Figure  # not pyplot, which needs a display and has global state

    rows = read_stats(workdir)
    found = set().union(*rows)
    panels = [(title, curves) for title, curves in PANELS if title != PENALTIES or found & curves.keys()]
    figure = Figure(figsize=(10, 3 * len(panels)), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(len(panels), 1, sharex=True), panels):
        for key, label in curves.items():
            if points := [(row["kimg"], row[key]) for row in rows if key in row]:
                axes.plot(*zip(*points), label=label, marker="." if len(points) < 40 else None)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=9)
    axes.set_xlabel("kimg: thousands of real images that D has seen")
    figure.savefig(file := io.BytesIO(), dpi=100, format="png")
    atomic.write_bytes(RunDir(workdir).curves, file.getvalue(), flush=False)


def read_stats(workdir: Path) -> list[dict]:
    """Return the rows of a run's stats.jsonl, oldest first, without a line cut short; none if it cannot be read."""
    rows = []
    with contextlib.suppress(OSError):
        for line in RunDir(workdir).stats.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict) and {"step", "kimg"} <= row.keys():
                    rows.append(row)
    return rows


def _truncate_stats(workdir: Path, step: int) -> None:
    """Remove the rows of later steps, and a last line cut short."""
    if (path := RunDir(workdir).stats).exists():
        lines = [json.dumps(row) + "\n" for row in read_stats(workdir) if row["step"] <= step]
        atomic.write_text(path, "".join(lines))
