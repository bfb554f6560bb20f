"""What `idrid-jax evaluate` does: a run's generator measured by the protocol, written to evaluation.json."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from idrid_jax import sampling
from idrid_jax.data import atomic, cache
from idrid_jax.data.layout import GRADES
from idrid_jax.errors import UserError
from idrid_jax.evaluation import closeness, copies, membership, protocol, usefulness
from idrid_jax.evaluation.features import kept, random_network
from idrid_jax.evaluation.image_quality import ssim_pairs
from idrid_jax.models import NETWORKS
from idrid_jax.pictures import grid
from idrid_jax.sampling import encode
from idrid_jax.training import build, saved
from idrid_jax.training.step import to_float

NAME = "evaluation.json"
UNTRAINED = 8  # discriminators that know nobody, for what splits differ by themselves
PAIRS = "copies.png"  # the generated images nearest to training photographs, each above its own
SNAPSHOT_IMAGES = 60  # of each set at 128 pixels and below, fewer above: a snapshot's measures shall cost seconds


def evaluate(
    workdir: Path | str,
    *,
    count: int | None = None,
    seed: int = 0,
    step: int | None = None,
    data_dir: Path | str = "",
    seeds: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measures `count` images (None: as many as training photographs) against the release that the run was trained on.

    data_dir: where the release is prepared; empty: where the run found it.
    seeds: graders trained each way for `usefulness.measure`, whose result is then under "usefulness"; 0: none, but what
      was measured earlier of the same checkpoint and seed stays.
    tell: is told what takes long.
    Grades are drawn in the training split's proportions. The test split is the held-out one, and may be empty;
    nothing is chosen by it.
    Returns what `protocol.measure` does, with `closeness.measure` under "closeness", `copies.measure` under "copies",
    `membership.measure` under "membership" and what was measured under "of"; writes it to `workdir/evaluation.json`,
    and the pairs of "copies" to `workdir/copies.png`.
    Raises UserError where `sampling.load` does, or the release is no longer prepared.
    """
    sampler = sampling.load(workdir, step)
    config = sampler.config.copy_and_resolve_references()
    config.data.release = sampler.run.fingerprint
    config.data.data_dir = str(data_dir) or sampler.run.data_dir
    try:
        manifest = build.find_release(config)
        training = build.load_split(config, manifest, "train")
        held_out = training.images[:0], training.grades[:0]  # of a release such as `sample` writes
        if any(manifest.counts["grading"]["test"]):
            split = build.load_split(config, manifest, "test")
            held_out = split.images, split.grades
    except UserError as error:
        release = f"{sampler.run.release} ({sampler.run.fingerprint[:12]})"
        raise UserError(
            f"{workdir} was trained on release {release}: {error}; name where it is prepared with --data_dir"
        ) from error
    count = len(training.grades) if count is None else count
    # the training split's own grades, in a drawn order, over and over: the same mixture for any count
    order = np.random.default_rng(seed).permutation(len(training.grades))
    grades = training.grades[np.resize(order, count)]
    images = np.stack(list(sampler.images(grades, seed=seed)))
    result = protocol.measure(
        images, grades if sampler.network.conditional else None, training.images, training.grades, *held_out, seed=seed
    )
    result["closeness"] = _closeness(
        images,
        grades if sampler.network.conditional else None,
        training,
        held_out,
        folder=manifest.folder / "features",
        seed=seed,
        tell=tell,
    )
    tell("copies of training photographs")
    result["copies"] = copies.measure(images, np.asarray(training.images), np.asarray(held_out[0]), training.ids)
    tell("membership")
    result["membership"] = membership.measure(*_scores(workdir, sampler.step, training, *held_out))
    result["of"] = {
        "network": config.network,
        "step": sampler.step,
        "kimg": sampler.step * config.batch_size / 1000,
        "release": manifest.name,
        "fingerprint": manifest.fingerprint,
        "size": sampler.network.size,
        "channels": sampler.network.channels,
        "crop": config.data.crop,
    }
    path = Path(workdir) / NAME
    if seeds:
        result["usefulness"] = _usefulness(sampler, training, *held_out, seed, seeds, tell)
    elif kept := _earlier(path, result):
        result["usefulness"] = kept
    if pairs := result["copies"].get("pairs"):
        drawn, real = ([pair[which] for pair in pairs] for which in ("generated", "index"))
        both = np.concatenate([images[drawn], np.asarray(training.images)[real]])
        atomic.write_bytes(Path(workdir) / PAIRS, encode(np.asarray(grid(both, len(pairs))), "png"))
    atomic.write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def _earlier(path, result) -> dict | None:
    """The usefulness that an evaluation of the same images wrote down: it took minutes."""
    try:
        earlier = json.loads(path.read_text())
        same = (earlier["of"], earlier["seed"]) == (result["of"], result["seed"])
        return earlier["usefulness"] if same else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return None


def _scores(workdir, step, training, held_out, held_out_grades):
    """The discriminator's logits of training and of held-out photographs, and a list of the same of untrained ones."""
    run, state = saved.read_run(workdir, step=step)
    _, discriminator = build.networks(run.config)
    of = jax.jit(lambda arrays, images, grades: discriminator.eval(*arrays, to_float(images), grades))
    splits = (training.images, training.grades), (held_out, held_out_grades)
    at_once = NETWORKS[run.config.network].at_once
    logits = lambda arrays: _logits(functools.partial(of, arrays), splits, at_once)
    untrained = [discriminator.init(jax.random.key(seed)) for seed in range(UNTRAINED)]
    return *logits((state.d.params, state.d.stats)), [logits(arrays) for arrays in untrained]


def _logits(of, splits, at_once) -> tuple[np.ndarray, ...]:
    """Of each split, `at_once` images at a time."""
    scores = []
    for images, grades in splits:
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(images), at_once):
            # one size, one compilation
            part, of_part = (np.asarray(x[start : start + at_once]) for x in (images, grades))
            filled = [np.resize(x, (at_once, *x.shape[1:])) for x in (part, of_part)]
            parts.append(np.asarray(of(*filled), np.float32)[: len(part)])
        scores.append(np.concatenate(parts))
    return tuple(scores)


def _usefulness(sampler, training, held_out, held_out_grades, seed, seeds, tell):
    if not sampler.network.conditional:
        return {"missing": f"{sampler.config.network} is unconditional: its images have no grades to learn from"}
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), usefulness.wanted(training.grades))
    synthetic = np.stack(list(sampler.images(grades, seed=seed)))
    real = np.asarray(training.images), training.grades, held_out, held_out_grades
    return usefulness.measure(*real, synthetic, grades, seeds=seeds, tell=tell)


def _closeness(images, grades, training, held_out, *, folder, seed, tell):
    name = random_network.name()
    extract = lambda images: kept.features(images, name, random_network.extract, folder)
    return closeness.measure(
        images,
        grades,
        training.images,
        training.grades,
        *held_out,
        extract=extract,
        features=name,
        seed=seed,
        note=tell,
    )


def snapshot_measures(fakes: np.ndarray, grades: np.ndarray, training: cache.Split) -> dict[str, float]:
    """How alike a snapshot's images are: a cheap sign of collapse, handed to `loop.train`.

    fakes uint8 [N, R, R, C]. Returns "ssim_among" of the fakes, its "ssim_excess" over as many training images, and
    the "ssim_gap", the excess without its sign, 0 where fakes are as diverse as real ones; the latter two only where
    there are two training images.
    """
    del grades
    fakes = fakes[: max(8, int(SNAPSHOT_IMAGES * min(1, 128 / fakes.shape[1])))]
    some = np.linspace(0, len(training.grades) - 1, min(len(fakes), len(training.grades))).astype(int)
    among = _among(fakes)
    if len(some) < 2:
        return {"ssim_among": among}
    excess = among - _among(np.asarray(training.images[some]))
    return {"ssim_among": among, "ssim_excess": excess, "ssim_gap": abs(excess)}


def _among(images):
    pairs = np.asarray(ssim_pairs(images.astype(np.float32) / 255, images.astype(np.float32) / 255))
    return float(pairs[~np.eye(len(images), dtype=bool)].mean())
