"""A stand-in for `idrid-jax train` and `evaluate` in tests of sweeps: it writes the same files and computes nothing.

It trains to 0.08 kimg unless the command line says otherwise, saves every step, resumes, saves and exits on SIGTERM,
and diverges at a learning rate above 1. In the folder above the run directory, a file `pace` holds the seconds of a
step and `linger` the seconds of saving after SIGTERM. Every start and end appends a line to `starts.jsonl` there. It
writes no config.json, so `use` skips the check of that file.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def use(monkeypatch):
    """Make `idrid_jax.sweep` start this file in place of the real commands."""
    from idrid_jax.sweep import job, runner

    check_resume = runner.run_dir.check_resume

    def check_if_recorded(folder, *rest):
        if (folder / "config.json").exists():
            check_resume(folder, *rest)

    monkeypatch.setattr(job, "COMMAND", [sys.executable, str(Path(__file__).absolute())])
    monkeypatch.setattr(runner.run_dir, "check_resume", check_if_recorded)


def main(command, *arguments):
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    run_dir = Path(flags["workdir"])
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    step = max([int(path.name) for path in (run_dir / "checkpoints").iterdir()], default=0)
    log_event(run_dir, command=command, step=step, processors=sorted(os.sched_getaffinity(0)), fields=flags)
    if command == "train":
        train(run_dir, flags, step)
    else:
        evaluate(run_dir, step)


def train(run_dir, flags, step):
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    rate = float(flags.get("config.optimizer.g_learning_rate", 0))
    batch_size, kimg = int(flags.get("config.batch_size", 8)), float(flags.get("config.total_kimg", 0.08))
    while step < round(kimg * 1000 / batch_size) and not received:
        time.sleep(seconds(run_dir, "pace"))
        step += 1
        if rate > 1:
            print(f"idrid-jax: step {step}: loss_g is nan", file=sys.stderr)
            sys.exit(2)
        (run_dir / "checkpoints" / str(step)).mkdir(exist_ok=True)
        row = {"step": step, "kimg": step * batch_size / 1000, "images_per_s": 100.0 + step}
        with (run_dir / "stats.jsonl").open("a") as file:
            file.write(json.dumps(row | {"loss_d": rate, "loss_g": 2.0}) + "\n")
    time.sleep(seconds(run_dir, "linger") if received else 0)
    log_event(run_dir, command="saved", step=step)


def evaluate(run_dir, step):
    values = {"ssim": 0.5 + step / 1000, "psnr": 20.0}
    sections = ("generated", "nearest_to_generated", "within_generated", "held_out_real")
    quality = {**{section: values for section in sections}, "collapse": {"ssim_excess": 0.05}}
    run = {"network": "dcgan28", "step": step, "last_step": step, "size": 28, "release": "made up"}
    result = {"quality": quality, "run": run | {"fingerprint": "f" * 64}}
    (run_dir / "evaluation.json").write_text(json.dumps(result))


def log_event(run_dir, **fields):
    with (run_dir.parent / "starts.jsonl").open("a") as file:
        file.write(json.dumps({"run": run_dir.name, "pid": os.getpid(), "time": time.time(), **fields}) + "\n")


def seconds(run_dir, name):
    path = run_dir.parent / name
    return float(path.read_text()) if path.exists() else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
