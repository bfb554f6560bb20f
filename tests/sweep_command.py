"""A stand-in for `idrid-jax train` and `evaluate`, to test what a sweep does with them: the same files, in no time.

It trains to 0.08 kimg unless the command line says otherwise, saves every step, goes on where it stopped, takes SIGTERM
as the real one does, and diverges at a learning rate above 1. A file `pace` in the folder above the workdir holds the
seconds that a step takes, `linger` those that it takes to save when interrupted. Every start and every end is a line in
`starts.jsonl` there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

command, *arguments = sys.argv[1:]
given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
workdir = Path(given["workdir"])
told = workdir.parent


def say(**what):
    with (told / "starts.jsonl").open("a") as file:
        file.write(json.dumps({"run": workdir.name, "pid": os.getpid(), "time": time.time(), **what}) + "\n")


checkpoints = workdir / "checkpoints"
checkpoints.mkdir(exist_ok=True)
step = max([int(path.name) for path in checkpoints.iterdir()], default=0)
say(command=command, step=step, processors=sorted(os.sched_getaffinity(0)), fields=given)
if command == "train":
    received, pace, linger = [], told / "pace", told / "linger"
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    rate = float(given.get("config.optimizer.g_learning_rate", 0))
    batch, kimg = int(given.get("config.batch_size", 8)), float(given.get("config.total_kimg", 0.08))
    while step < round(kimg * 1000 / batch) and not received:
        time.sleep(float(pace.read_text()) if pace.exists() else 0)
        step += 1
        if rate > 1:
            print(f"idrid-jax: step {step}: loss_g is nan", file=sys.stderr)
            sys.exit(2)
        (checkpoints / str(step)).mkdir(exist_ok=True)
        with (workdir / "stats.jsonl").open("a") as file:
            row = {
                "step": step,
                "kimg": step * batch / 1000,
                "images_per_s": 100.0 + step,
                "loss_d": rate,
                "loss_g": 2.0,
            }
            file.write(json.dumps(row) + "\n")
    time.sleep(float(linger.read_text()) if received and linger.exists() else 0)
    say(command="saved", step=step)
else:
    measures = {"ssim": 0.5 + step / 1000, "psnr": 20.0}
    rows = ("generated", "nearest_to_generated", "within_generated", "held_out_real")
    run = {"network": "dcgan28", "step": step, "last_step": step, "size": 28, "release": "made up", "fingerprint": "f" * 64}
    result = {"quality": {**{row: measures for row in rows}, "collapse": {"ssim_excess": 0.05}}, "run": run}
    (workdir / "evaluation.json").write_text(json.dumps(result))
