"""What `idrid-jax evaluate` does: a run's generator measured beside photographs, written to evaluation.json."""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from idrid_jax.batching import map_in_batches
from idrid_jax.data import atomic, cache, folds, laterality
from idrid_jax.data.layout import GRADES
from idrid_jax.data.manifest import Manifest
from idrid_jax.data.splits import find_release, load_split
from idrid_jax.errors import UserError
from idrid_jax.evaluation import (
    augmentation_leak,
    closeness,
    grader,
    membership,
    memorization,
    quality,
    reading,
    usefulness,
)
from idrid_jax.evaluation.downsample import check_pixels, smaller
from idrid_jax.evaluation.features import feature_cache, pretrained, trained_grader
from idrid_jax.evaluation.features.extractor import FeatureExtractor
from idrid_jax.generation import sampling
from idrid_jax.generation.sampling import Sampler
from idrid_jax.images import encode_image, image_grid, to_float, to_uint8
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import augment
from idrid_jax.training.checkpoint import Checkpoints, read_run
from idrid_jax.training.optimizers import grade_conditioning

NAME = "evaluation.json"
UNTRAINED = 8  # discriminators that know nobody, for what splits differ by themselves
PAIRS = "memorization.png"  # the generated images nearest to training photographs, each above its own
Progress = Callable[[str, int], None]  # (what is done now, of how many such stages)


def evaluate(
    workdir: Path | str,
    *,
    count: int | None = None,
    seed: int = 0,
    step: int | None = None,
    pixels: int | None = None,
    statistics: str = "auto",
    data_dir: Path | str = "",
    weights_files: Sequence[Path | str] = (),
    seeds: int = 0,
    keep_share: float = 0.0,
    edema: bool = False,
    side: int = grader.Budget.side,
    progress: Progress = lambda text, stages: None,
    told: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measures `count` images (None: as many as training photographs) against the release that the run was trained on.

    step, statistics: of the generator, see `load_sampler`. data_dir: where the release is prepared; empty: where the
      run found it.
    pixels: a side at which images and photographs are compared, to set a run beside one of smaller images (None: the
      images' own). Copies, membership, leaks and usefulness are measured at the images' own alone.
    weights_files: of networks trained elsewhere, see `features.pretrained`: closeness is measured by their features too.
      One that holds no such network, and `pretrained.IMAGENET` not installed, is told on stderr, and done without.
    seeds: graders trained each way for `usefulness.measure`, whose result is then under "usefulness"; 0: none, but what
      was measured earlier of the same checkpoint and seed stays. keep_share: above 0, also with this share of the
      synthetic images, those likeliest to a grader of training photographs. edema: they learn the risk of macular
      oedema too. side: pixels at which they read, at most.
    told: is given the result before it is written: a disk that is full by then takes no more than the file.
    Grades are drawn in the training split's proportions. The test split is the held-out one, and may be empty;
    nothing is chosen by it.
    Returns {"run": what was measured, "quality", "closeness", "memorization", "membership": what the module of that name
    returns, for a conditional generator "grading", and where D was shown augmented images "augmentation_leak"}; writes
    it to `workdir/evaluation.json`, and the pairs of "memorization" to `workdir/memorization.png`; at `pixels` to
    `workdir/evaluation_PIXELS.json` alone.
    Where a file of weights was skipped, "skipped_weights": {its name: why}.
    Raises UserError where `load_sampler` does, a file of weights is not there, the release is no longer prepared,
    `workdir` cannot be written, or `check_pixels` refuses `pixels`, which do not go with `seeds` either.
    """
    if pixels is not None and seeds:
        raise UserError("--usefulness is measured at the images' own size: leave --pixels out")
    trained_elsewhere, left_out = _trained_elsewhere(weights_files)
    sampler = sampling.load_sampler(workdir, step, batch_statistics=statistics)
    if pixels is not None:
        check_pixels(pixels, sampler.network.size)
    with atomic.partial_folder(Path(workdir)):  # or minutes of work would end in it
        pass
    conditional = sampler.network.conditional
    arms = len(usefulness.ARMS) - (not keep_share) if seeds and conditional else 0
    stages = 3 + 2 * (pixels is None) + 3 * (1 + len(trained_elsewhere)) + len(GRADES) * conditional + arms
    tell = lambda text: progress(text, stages)
    manifest, training, held_out = photographs(workdir, sampler, data_dir, pixels)
    shown = training.subset(~folds.validation_mask(manifest, sampler.config.data.validation_folds))
    count = len(training.grades) if count is None else count
    # the training split's own grades, in a drawn order, over and over: the same mixture for any count
    order = np.random.default_rng(seed).permutation(len(training.grades))
    grades = training.grades[np.resize(order, count)]
    tell(f"drawing {count} images; PSNR and SSIM of all pairs")
    images = np.stack(list(sampler.images(grades, seed=seed)))
    images = images if pixels is None else smaller(images, pixels)
    real = np.asarray(training.images), training.grades, np.asarray(held_out.images), held_out.grades
    sets = images, grades if conditional else None, *real
    result = {"quality": quality.measure(*sets, seed=seed)}
    tell("a grader of the training photographs")
    dr_grader, params = trained_grader.train(shown.images, shown.grades, manifest.folder / "features")
    strangers = [_remembered(network) for network in trained_elsewhere]
    keep = lambda network, images: feature_cache.cached_features(network, images, manifest.folder / "features")
    result["closeness"] = closeness.measure(*sets, networks=[dr_grader, *strangers], keep=keep, seed=seed, note=tell)
    if conditional:
        read = [grader.read(params, some)[0].argmax(-1) for some in (images, real[2])]
        result["grading"] = reading.measure(read[0], grades, read[1], held_out.grades)
    if pixels is None:
        tell("copies of training photographs")
        features = _seen_soft(strangers, images, real[0], real[2], keep)
        result["memorization"] = memorization.measure(images, real[0], real[2], training.ids, features)
        tell("membership")
        result["membership"] = membership.measure(*_scores(workdir, sampler.step, shown, held_out))
        if augmentation := augment.augmentation_from_config(sampler.config):
            augmented = _augmented(real[0], augmentation.strengths, sampler.network.sample_batch_size, seed)
            result["augmentation_leak"] = augmentation_leak.compare(images, real[0], augmented, seed=seed)
    result["run"] = _subject(workdir, sampler, manifest, step, seed, statistics, pixels)
    if left_out:
        result["skipped_weights"] = left_out
    path = Path(workdir) / file_name(pixels)
    if seeds:
        result["usefulness"] = _usefulness(
            sampler, training, held_out, params, seed=seed, seeds=seeds, keep_share=keep_share, edema=edema, side=side,
            tell=tell,
        )  # fmt: skip
    elif earlier := _earlier(path, result):
        result["usefulness"] = earlier
    told(result)
    if pairs := result.get("memorization", {}).get("pairs"):
        drawn, nearest = ([pair[which] for pair in pairs] for which in ("generated", "index"))
        both = np.concatenate([images[drawn], real[0][nearest]])
        atomic.write_bytes(Path(workdir) / PAIRS, encode_image(np.asarray(image_grid(both, len(pairs))), "png"))
    atomic.write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def file_name(pixels: int | None) -> str:
    """Of what `evaluate` writes."""
    return NAME if pixels is None else NAME.replace(".", f"_{pixels}.")


def _trained_elsewhere(files) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """Networks from files, and {the name of a file that holds none: why}."""
    networks, left_out = [], {}
    for path in files:
        try:
            networks.append(pretrained.load(path))
        except UserError as error:
            if str(path) != pretrained.IMAGENET and not Path(path).is_file():  # misspelt: sooner mended than done without
                raise
            left_out[Path(path).name] = str(error).removeprefix(f"{path}: ")
            print(f"{error}; measuring without it", file=sys.stderr, flush=True)
    return networks, left_out


def _seen_soft(networks, generated, training, held_out, keep):
    """Features of softened images as `memorization.measure` takes them. keep: of photographs, which are not seen again."""
    generated, training, held_out = (memorization.softened(images) for images in (generated, training, held_out))
    sides = lambda extract, images: np.stack([extract(side) for side in (images, images[:, :, ::-1])])
    return {
        n.name: (sides(n.extract, generated), keep(n, training), sides(functools.partial(keep, n), held_out))
        for n in networks
    }


def _remembered(network: FeatureExtractor) -> FeatureExtractor:
    """One that knows again the images it has seen: a trained network takes minutes for them."""
    seen = {}

    def extract(images):
        key = feature_cache.cache_key(images, network.name)
        if key not in seen:
            seen[key] = network.extract(images)
        return seen[key]

    return dataclasses.replace(network, extract=extract)


def photographs(
    workdir, sampler: Sampler, data_dir, size: int | None = None
) -> tuple[Manifest, cache.Split, cache.Split]:
    """The release of a run, its training split, and its test split (of a release such as `sample` writes: empty),
    `size` pixels a side (None: the network's)."""
    manifest, training = training_photographs(workdir, sampler, data_dir, size)
    if not any(manifest.counts["grading"]["test"]):
        return manifest, training, training.subset(np.arange(0))
    with _trained_on(workdir, sampler):
        config = sampler.run.config_with_release(data_dir)
        return manifest, training, load_split(config, manifest, "test", size)


def training_photographs(
    workdir, sampler: Sampler, data_dir="", size: int | None = None
) -> tuple[Manifest, cache.Split]:
    """Of a run, as `photographs`; its test split need not be there.

    data_dir: where the release is prepared; empty: where the run found it. Raises UserError where it is not there.
    """
    config = sampler.run.config_with_release(data_dir)
    with _trained_on(workdir, sampler):
        manifest = find_release(config)
        return manifest, load_split(config, manifest, "train", size)


@contextlib.contextmanager
def _trained_on(workdir, sampler):
    try:
        yield
    except UserError as error:
        release = f"{sampler.run.release} ({sampler.run.fingerprint[:12]})"
        raise UserError(
            f"{workdir} was trained on release {release}: {error}; name where it is prepared with --data_dir"
        ) from error


def _subject(workdir, sampler: Sampler, manifest, step, seed, statistics, pixels) -> dict:
    """What was measured."""
    config, network = sampler.config, sampler.network
    with Checkpoints(Path(workdir)) as checkpoints:
        best, newest = checkpoints.best_step(), checkpoints.steps()[-1]
    strength = sampler.conditioning_strength
    heard = {} if strength == 1 else {"conditioning_strength": strength}
    how = "the newest checkpoint"
    if step is not None:
        how = "the checkpoint that was asked for"
    elif sampler.step == best:
        how = f"the snapshot with the lowest {config.checkpoint.best} while training"
    return (
        {
            "network": config.network,
            "step": sampler.step,
            "kimg": sampler.step * config.batch_size / 1000,
            "chosen": how,
            "last_step": newest,
            "seed": seed,
            "statistics": statistics,
            "batch_statistics": sampler.batch_statistics,
            "release": manifest.name,
            "fingerprint": manifest.fingerprint,
            "size": network.size,
            "channels": network.channels,
            "crop": config.data.crop,
        }
        | heard
        | ({} if pixels is None else {"pixels": pixels})
    )


def _earlier(path, result) -> dict | None:
    """The usefulness that an evaluation of the same images wrote down: it took minutes."""
    try:
        earlier = json.loads(path.read_text())
        return earlier["usefulness"] if earlier["run"] == result["run"] else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return None


def _scores(workdir, step, training, held_out):
    """The discriminator's logits of training and of held-out photographs, and a list of the same of untrained ones."""
    run, state = read_run(workdir, step=step)
    _, discriminator = build_networks(run.config)
    hears = grade_conditioning(run.config)
    of = jax.jit(lambda arrays, images, grades: discriminator.eval(*arrays, to_float(images), hears(grades, step)))
    # as it was shown them: it would take photographs of the other side for fakes, whoever's they are
    seen = lambda images: laterality.canonicalize_laterality(images, laterality.is_left_eye(images)) if run.config.data.canonicalize_laterality else images
    splits = [(seen(np.asarray(split.images)), split.grades) for split in (training, held_out)]
    at_once = NETWORKS[run.config.network].sample_batch_size

    def logits(arrays):
        reads = functools.partial(of, arrays)
        return tuple(map_in_batches(reads, *split, batch_size=at_once) for split in splits)

    untrained = [discriminator.init(jax.random.key(seed)) for seed in range(UNTRAINED)]
    return *logits((state.d.params, state.d.stats)), [logits(arrays) for arrays in untrained]


def _augmented(images, strengths, at_once, seed) -> np.ndarray:
    """Photographs as the discriminator is shown them where every transform is taken, uint8 [N, R, R, C]."""
    of = jax.jit(lambda key, x: to_uint8(augment.apply(to_float(x), key, 1.0, strengths)))
    key = jax.random.key(seed)
    part = lambda places, some: of(jax.random.fold_in(key, places[0]), some)
    return map_in_batches(part, np.arange(len(images)), images, batch_size=at_once)


def _usefulness(sampler, training, held_out, params, *, seed, seeds, keep_share, edema, side, tell) -> dict:
    """params: of the grader that finds which synthetic images are likeliest."""
    if not sampler.network.conditional:
        return {"missing": f"{sampler.config.network} is unconditional: its images have no grades to learn from"}
    wanted = usefulness.wanted(training.grades)
    grades = np.repeat(np.arange(len(GRADES), dtype=np.int32), np.ceil(wanted / (keep_share or 1)).astype(int))
    synthetic = np.stack(list(sampler.images(grades, seed=seed)))
    return usefulness.measure(
        np.asarray(training.images),
        training.grades,
        np.asarray(held_out.images),
        held_out.grades,
        synthetic,
        grades,
        likelihood=trained_grader.likelihood(params, synthetic, grades) if keep_share else None,
        edema=(training.edema, held_out.edema) if edema else None,
        seeds=seeds,
        budget=grader.Budget(side=side),
        tell=tell,
    )
