"""Fixtures of many tests: a small made-up release, and a run with random weights that took no training."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.release import ReleaseWriter
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.run_dir import write_record
from idrid_jax.training.state import single_device_state

TRAIN, TEST = (5, 2, 4, 3, 1), (2, 1, 1, 1, 1)  # photographs by grade


def photograph(seed: int, height: int = 64, width: int = 96) -> bytes:
    """Return a JPEG of a disc with random brightness and smooth texture on black; two seeds do not correlate."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    texture = Image.fromarray(rng.integers(0, 90, (12, 18), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    image = (np.asarray(texture)[..., None] + rng.integers(40, 120, 3)).astype(np.uint8)
    image[np.hypot(x - width * 0.45, y - height / 2) > height * 0.55] = 0
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def write_release(out: Path, train=TRAIN, test=TEST) -> Path:
    """Write `train` and `test` photographs by grade as part B, and one each as parts A and C; return `out`."""
    with ReleaseWriter(out, "made up") as writer:
        for split, counts, first in (("train", train, 0), ("test", test, 1000)):
            for i, grade in enumerate(np.repeat(range(5), counts)):
                writer.add_graded(split, photograph(first + i), int(grade), 0)
        writer.add_segmented("train", photograph(2000), {"MA": np.eye(64, 96, dtype=bool)})
        writer.add_located("train", photograph(3000), (20.0, 30.0), (40.0, 31.0))
    return out


def made_usefulness(rng, sizes=("generator", "full"), seeds: int = 3) -> dict:
    """Return a result of `usefulness.measure` with random numbers; every number is different."""

    def entry():
        value = rng.uniform(0.1, 0.9)
        return {"mean": value, "interval": [value - 0.1, value + 0.1]}

    def measures():
        scores = {
            name: entry() | {"by_seed": rng.uniform(size=seeds).tolist()} for name in ("qwk", "balanced_accuracy")
        }
        return scores | {"recall": {grade: entry() for grade in GRADES}}

    arms = ("real", "real_balanced", "synthetic_balanced", "synthetic_twice", "synthetic_only")
    of_size = {
        size: {
            "photographs": [6, 4, 5, 3, 2],
            "arms": {arm: measures() | {"confusion": rng.integers(100, size=(5, 5)).tolist()} for arm in arms},
            "baseline": "real",
            "differences": {arm: measures() for arm in arms[1:]},
            "best": "synthetic_twice",
            "verdict": f"no measurable gain: kappa +0.0{number}",
            "by_grade": {grade: f"no measurable gain: recall +0.{number}{i}" for i, grade in enumerate(GRADES)},
        }
        for number, size in enumerate(sizes)
    }
    last = of_size[sizes[-1]]["verdict"]
    return {"sizes": of_size, "verdict": f"at {sizes[-1]} size: {last}", "seeds": seeds, "extractor": "colors:1"}


def make_run(
    workdir: Path, manifest: Manifest, *, network: str = "cgan32", steps: tuple[int, ...] = (3,), **changes
) -> Path:
    """Write a run directory as training leaves it, with random checkpoints, without compiling anything; return it.

    Checkpoints of different steps differ, and so do the generator and its moving average. changes: of the default
    configuration.
    """
    config = config_lib.default_config()
    config.network = network
    config.data.data_dir = str(manifest.folder.parent.parent)
    config.update_from_flattened_dict(changes)
    workdir.mkdir(parents=True)
    write_record(workdir, config, manifest)
    shapes = single_device_state(config)
    with Checkpoints(workdir, keep_last=len(steps)) as checkpoints:
        for step in steps:
            rng = np.random.default_rng(step)

            def fill(path, leaf):
                name = jax.tree_util.keystr(path)
                if name == ".step":
                    return jnp.asarray(step, leaf.dtype)
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    return jnp.zeros(leaf.shape, leaf.dtype)
                values = rng.standard_normal(leaf.shape, np.float32) * 0.1
                return jnp.asarray(np.abs(values) + 0.5 if "var" in name else values, leaf.dtype)

            checkpoints.save(step, jax.tree_util.tree_map_with_path(fill, shapes))
        checkpoints.wait()
    return workdir
