"""What a run tells: the console, stats.jsonl, TensorBoard, and grids of images."""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from idrid_jax.training.tensorboard import Events

SHOWN = {"loss_d": "Loss_D", "loss_g": "Loss_G", "d_real": "D(x)", "d_fake_after": "D(G(z))"}


class Log:
    """One run's numbers and pictures. Use as a context manager.

    `console`: "bar" is a progress bar with images/s, kimg and time left (a line each time where stderr is no terminal);
    "thesis" is its own line (4.4): [epoch/epochs][batch/batches] Loss_D Loss_G D(x) D(G(z)) before / after D's update.
    """

    def __init__(
        self, workdir: Path, *, total_images: int, first_step: int, batch_size: int, epoch_images: int, console: str
    ):
        """Goes on after `first_step`: what stats.jsonl holds of later steps, from a run that was killed, is dropped."""
        self._workdir, self._batch_size, self._total, self._console = workdir, batch_size, total_images, console
        self._epoch_batches = max(1, epoch_images // batch_size)
        self._start = time.monotonic()
        self._open(first_step, first_step > 0)
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
        self._board.close()
        self._file.close()

    def go_back(self, step: int) -> None:
        """Goes on after `step` once more: what was logged of later ones is dropped, as at the start."""
        self._file.close()
        self._board.close()
        self._open(step, True)
        self._bar.n = step * self._batch_size / 1000

    def _open(self, step, keep):
        """keep: whether what was logged at `step` itself stays; a fresh run logs its 0 anew."""
        path = self._workdir / "stats.jsonl"
        _keep_until(path, step)
        self._file = path.open("a")
        # its readers forget the purge step too, where stats.jsonl keeps the row of `step`
        self._board = Events(self._workdir / "tensorboard", step * self._batch_size + keep)
        self.start_clock(step)

    def start_clock(self, step: int) -> None:
        """images/s is measured from here on: after the first step, which compiles, and after a snapshot."""
        self._clock, self._clock_step = time.monotonic(), step

    def read_clock(self, step: int) -> float:
        """images/s since the clock was started, which starts it anew."""
        rate = (step - self._clock_step) * self._batch_size / max(time.monotonic() - self._clock, 1e-9)
        self.start_clock(step)
        return rate

    def scalars(
        self, step: int, rows: list[dict[str, float]], rate: float, measures: dict[str, float] | None = None
    ) -> None:
        """Logs the means of `rows`, metrics of every step since the last call, with images/s and what a snapshot
        measured."""
        images, measures = step * self._batch_size, measures or {}
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        seconds = round(time.monotonic() - self._start, 3)
        record = {"step": step, "kimg": images / 1000, "seconds": seconds, "images_per_s": round(rate, 2)}
        self._file.write(json.dumps(record | means | measures) + "\n")
        self._file.flush()
        for name, value in {**means, **measures, "images_per_s": rate}.items():
            self._board.scalar(name, value, images)
        self._board.flush()
        self._show(step, rows[-1], means, rate)

    def image(self, name: str, picture: Image.Image, step: int) -> None:
        """Writes `name`.png whole or not at all, and the same to TensorBoard."""
        file = io.BytesIO()
        picture.save(file, format="PNG")
        partial = self._workdir / f".{name}.png"
        partial.write_bytes(png := file.getvalue())
        os.replace(partial, self._workdir / f"{name}.png")
        channels = len(picture.getbands())
        self._board.picture(name.split("_")[0], png, picture.size, channels, step * self._batch_size)

    def say(self, text: str) -> None:
        """A line that a progress bar does not overwrite."""
        self._bar.write(text, file=sys.stderr) if not self._bar.disable else print(text, file=sys.stderr, flush=True)

    def _show(self, step, last, means, rate):
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
        numbers = " ".join(f"{caption} {means[name]:.3f}" for name, caption in SHOWN.items())
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{rate:.0f} images/s {numbers}", refresh=False)
            self._bar.update(images / 1000 - self._bar.n)
            return
        left = f"{(self._total - images) / rate / 60:.1f} min left, " if rate else ""  # 0 at the step that compiled
        print(
            f"{images / 1000:.1f}/{self._total / 1000:.1f} kimg, {rate:.0f} images/s, {left}{numbers}",
            file=sys.stderr,
            flush=True,
        )


class Quiet:
    """What a process logs that leaves it to another: nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def go_back(self, step):
        pass

    def start_clock(self, step):
        pass

    def read_clock(self, step):
        return 0.0

    def scalars(self, step, rows, rate, measures=None):
        pass

    def image(self, name, picture, step):
        pass

    def say(self, text):
        pass


def read_stats(workdir: Path) -> list[dict]:
    """The rows of a run's stats.jsonl, oldest first; none where it cannot be read. A line cut short is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in (Path(workdir) / "stats.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(row := json.loads(line), dict) and {"step", "kimg"} <= row.keys():
                    rows.append(row)
    return rows


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines of later steps, and a last line cut short."""
    if not path.exists():
        return
    kept = [json.dumps(row) for row in read_stats(path.parent) if row["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)
