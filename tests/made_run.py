"""What the tests of the commands share: a small made-up release, and a run that nobody trained."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from idrid_jax import config as config_lib
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.release import ReleaseWriter
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.run_dir import write_record
from idrid_jax.training.state import single_device_state

TRAIN, TEST = (5, 2, 4, 3, 1), (2, 1, 1, 1, 1)  # photographs by grade


def photograph(seed: int, height: int = 64, width: int = 96) -> bytes:
    """A disc of random brightness and smooth random texture on black, as JPEG; no two seeds correlate."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    texture = Image.fromarray(rng.integers(0, 90, (12, 18), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    image = (np.asarray(texture)[..., None] + rng.integers(40, 120, 3)).astype(np.uint8)
    image[np.hypot(x - width * 0.45, y - height / 2) > height * 0.55] = 0
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


def write_release(out: Path, train=TRAIN, test=TEST) -> Path:
    """Part B with so many photographs by grade, and one photograph each in parts A and C."""
    with ReleaseWriter(out, "made up") as writer:
        for split, counts, first in (("train", train, 0), ("test", test, 1000)):
            for i, grade in enumerate(np.repeat(range(5), counts)):
                writer.add_graded(split, photograph(first + i), int(grade), 0)
        writer.add_segmented("train", photograph(2000), {"MA": np.eye(64, 96, dtype=bool)})
        writer.add_located("train", photograph(3000), (20.0, 30.0), (40.0, 31.0))
    return out


def make_run(workdir: Path, manifest: Manifest, *, network: str = "cgan32", steps: tuple[int, ...] = (3,),
             **changes) -> Path:
    """A workdir as training leaves it, its checkpoints full of random numbers: costs no compilation.

    Checkpoints of different steps hold different numbers, and the moving average others than the generator itself.
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
