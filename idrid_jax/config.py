"""Every field of a configuration, with its unit; a file in `configs/` changes some of them and says why."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections

from idrid_jax import config_checks
from idrid_jax.data.pipeline.batch_order import SAMPLINGS
from idrid_jax.data.preprocess import CROPS
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models import NETWORKS
from idrid_jax.training.losses import LOSSES

PIPELINES = ("auto", "resident", "tfdata")
AUGMENTATIONS = ("none", "fixed", "adaptive")
ON_COLLAPSE = ("warn", "stop", "ignore")
ON_DIVERGENCE = ("stop", "restore")
CONSOLES = ("bar", "thesis")
DTYPES = ("float32", "bfloat16")
KINDS = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}

# What may change when a run goes on; the rest is part of what its checkpoints mean.
FREE_ON_RESUME = (
    "total_kimg",
    "snapshot_kimg",
    "log_kimg",
    "on_collapse",
    "on_divergence",
    "data.data_dir",
    "data.release",
    "data.pipeline",
    "data.resident_mib",
    "data.min_images_per_class",
    "mesh",
    "model.remat",
    "accumulate",
    "checkpoint.keep_last",
    "checkpoint.keep_every_kimg",
    "log",
)


def default_config() -> ml_collections.ConfigDict:
    """The fields that every configuration has; progress is counted in thousands of real images shown to D (kimg)."""
    return ml_collections.ConfigDict(
        dict(
            network="",  # a name in idrid_jax.models.NETWORKS
            seed=0,  # everything random is a function of (seed, step)
            batch_size=128,  # images per update, over all devices and processes
            accumulate=1,  # micro-batches that each update is made in, one after the other: less memory, more time
            dispatch_steps=1,  # updates in one call of the compiled step; 16 gained 3 % for dcgan28 on an H100
            total_kimg=100.0,  # when training ends
            snapshot_kimg=10.0,  # checkpoint, image grid and measures every so often
            on_collapse="warn",  # warn | stop | ignore: where images grow alike or D is sure of everything
            on_divergence="stop",  # stop | restore: from the newest checkpoint, updates half as large; at most 3 times
            log_kimg=1.0,  # numbers to console, stats.jsonl and TensorBoard every so often
            model=dict(
                max_channels=512,  # of a layer; dcgan256 and above, retina
                remat=False,  # activations computed again in the backward pass: less memory, more time; from 64 pixels
            ),
            dtype="float32",  # of the networks' arithmetic; parameters, statistics and losses stay float32
            init_from="",  # workdir of a run whose networks to start from, of this size or, what fits, of another
            optimizer=dict(
                g_learning_rate=2e-4,
                d_learning_rate=2e-4,
                b1=0.5,  # Adam's first moment; 0.5: Radford et al. 2016, section 4
                b2=0.999,
                clip_norm=0.0,  # gradients scaled to at most this global norm; 0 = off
            ),
            loss=dict(  # see training/losses.py; weights of 0 = off
                name="bce",  # bce | hinge | relativistic | wasserstein
                label_smoothing=0.0,  # of the real images' target, one-sided; of bce
                r1=0.0,  # gamma of the penalty gamma/2 |gradient of D|^2 on real images; -1 = auto
                r2=0.0,  # and on fake ones; -1 = auto
                gradient_penalty=0.0,  # of (|gradient of D| - 1)^2 between real and fake; 10: Gulrajani et al. 2017
                penalty_every=1,  # updates; these three then so many times as strong
                lecam=0.0,  # of D's logits towards the other side's average; for little data
                feature_matching=0.0,  # of the squared distance between D's mean features, added to G's loss
            ),
            ema_kimg=0.0,  # half-life of the generator's moving average, which samples then use; 0 = off, -1 = auto
            schedule=dict(  # along a cosine, then constant
                kimg=0.0,  # how long; 0 = constant from the start
                learning_rate_factor=1.0,  # of both networks, at the end, as a multiple of its first
                penalty_factor=1.0,  # of r1, r2 and gradient_penalty, likewise
            ),
            conditioning=dict(  # retina networks learn without the grades first: transitional training
                start_kimg=0.0,  # until then the grade is not heard
                ramp_kimg=0.0,  # and over so many more it comes in; 0 = at once
            ),
            data=dict(
                release="",  # fingerprint (or its beginning) or path of a prepared one; empty = prepared last
                data_dir="",  # where `prepare` wrote; empty = $TFDS_DATA_DIR, else ~/tensorflow_datasets
                pipeline="auto",  # resident | tfdata | auto = resident while the split fits resident_mib
                resident_mib=4096.0,  # device memory, MiB, that a resident split may take
                crop="field_of_view",  # field_of_view | letterbox (the thesis: whole frame, aspect kept)
                sampling="natural",  # natural | balanced by grade | tempered: between them
                temperature=2.0,  # of "tempered": grades come as (their photographs) ** (1 / temperature); 1 = natural
                flip=False,  # real images mirrored left to right at random
                canonicalize_laterality=False,  # or those with the disc on the left alone; as many generated ones are mirrored back
                merge_classes="",  # "0 1+2 3+4": grades joined by + are one class to the networks; empty = each its own
                min_images_per_class=5,  # training photographs of a class, with fewer no conditional network is trained
                validation_folds=8,  # one of so many folds of the training split only chooses the checkpoint; 0 = none
            ),
            augment=dict(  # of all that D is shown, real and fake, see training/augment.py; amounts uniform, 0 = off
                mode="none",  # none | fixed | adaptive: p is `p`, or follows how sure D is
                p=1.0,  # of fixed: probability of each transform for each image, 0 to 1
                target=0.6,  # of adaptive: p grows while the mean sign of D's real logits (or their lead) is above
                kimg=100.0,  # of adaptive: in so many p can go from 0 to 1
                rotation=10.0,  # degrees either way about the centre
                zoom=0.06,  # so much larger or smaller
                shift=0.03,  # share of the side, either way in rows and columns
                brightness=0.15,  # light times 1 - 0.15 to 1 + 0.15
                contrast=0.15,  # slope of light about its mean, 1 - 0.15 to 1 + 0.15
                saturation=0.15,  # distance from grey times 1 - 0.15 to 1 + 0.15
            ),
            mesh=dict(
                data=-1,  # devices along the batch; -1 = all
                rows=1,  # devices that share the rows of each image, beside those along the batch
                fsdp=False,  # parameters and optimizers split over the devices along the batch, not whole on each
            ),
            checkpoint=dict(
                keep_last=3,  # newest checkpoints kept
                keep_every_kimg=0.0,  # and every one at a multiple of this; 0 = none
                best="kid_imagenet",  # a metric of evaluation/snapshot_metrics.py; the lowest is kept and sampled; empty = none
            ),
            log=dict(console="bar"),  # bar | thesis = its line "[e/E][b/B] Loss_D: ..."
        )
    )


def base(file: str, path: str) -> ml_collections.ConfigDict:
    """The configuration that get_config() of another file returns; for a file that changes some of it.

    file: that file's own `__file__`. path: of the other, relative to it.
    """
    return runpy.run_path(str(Path(file).parent / path))["get_config"]()


def fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every leaf."""
    for name, value in sorted(config.items()):
        if isinstance(value, ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def steps(kimg: float, config: ml_collections.ConfigDict) -> int:
    """Updates that come nearest to so many thousand images, in whole calls of the step and at least one."""
    return config.dispatch_steps * max(1, round(kimg * 1000 / config.batch_size / config.dispatch_steps))


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the field, for a value that no run can have."""
    known, given = dict(fields(default_config())), dict(fields(config))
    for name in given:
        if name not in known:
            raise UserError(f"config.{name}: no such field; {suggest_name(name, known)}")
    for name, default in known.items():
        if name not in given:
            raise UserError(f"config.{name} is missing: begin the file with idrid_jax.config.default_config()")
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(given[name], wanted) or isinstance(given[name], bool) != isinstance(default, bool):
            raise UserError(f"config.{name} = {given[name]!r}: must be {KINDS[type(default)]}")
    for name, choices in (
        ("network", NETWORKS),
        ("dtype", DTYPES),
        ("loss.name", LOSSES),
        ("data.pipeline", PIPELINES),
        ("data.crop", CROPS),
        ("data.sampling", SAMPLINGS),
        ("augment.mode", AUGMENTATIONS),
        ("on_collapse", ON_COLLAPSE),
        ("on_divergence", ON_DIVERGENCE),
        ("log.console", CONSOLES),
    ):
        if given[name] not in choices:
            raise UserError(f"config.{name} = {given[name]!r}: {suggest_name(given[name], choices)}")
    for name, value in default_config().model.items():
        if config.model[name] != value and name not in NETWORKS[config.network].options:
            having = ", ".join(network for network, made in NETWORKS.items() if name in made.options)
            raise UserError(
                f"config.model.{name} = {config.model[name]!r}: {config.network} has no such choice, it is for {having}"
            )
    for name in ("total_kimg", "snapshot_kimg", "log_kimg"):
        if not 0 < given[name] < float("inf"):
            raise UserError(f"config.{name} = {given[name]}: must be above 0 and finite")
    counts = "batch_size", "accumulate", "dispatch_steps", "loss.penalty_every", "checkpoint.keep_last", "mesh.rows"
    for name in (*counts, "model.max_channels"):
        if given[name] < 1:
            raise UserError(f"config.{name} = {given[name]}: must be at least 1")
    for name in (
        "ema_kimg",
        "checkpoint.keep_every_kimg",
        *(f"loss.{name}" for name in ("r1", "r2", "gradient_penalty", "lecam", "feature_matching")),
        "optimizer.clip_norm",
        "optimizer.g_learning_rate",
        "optimizer.d_learning_rate",
        "data.resident_mib",
        *(f"schedule.{name}" for name in config.schedule),
        *(f"conditioning.{name}" for name in config.conditioning),
    ):
        if given[name] == -1 and name in AUTO:
            continue
        if not 0 <= given[name] < float("inf"):
            raise UserError(f"config.{name} = {given[name]}: must be finite and not negative")
    for name in ("loss.label_smoothing", "optimizer.b1", "optimizer.b2"):
        if not 0 <= given[name] < 1:
            raise UserError(f"config.{name} = {given[name]}: must be in [0, 1)")
    config_checks.check(config, default_config())
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed = {config.seed}: must be in [0, 2**32)")


# What -1 stands for, of the network's size, pixels a side, and the batch: as "auto" in StyleGAN2-ADA's own code.
AUTO = {
    "loss.r1": lambda size, batch: 2e-4 * size**2 / batch,
    "loss.r2": lambda size, batch: 2e-4 * size**2 / batch,
    "ema_kimg": lambda size, batch: batch * 10 / 32,
}


def resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy in which `AUTO` has taken the place of every -1."""
    whole = ml_collections.ConfigDict(config.to_dict())
    size = NETWORKS[config.network].size
    for name, value in automatic(config).items():
        whole.update_from_flattened_dict({name: value(size, config.batch_size)})
    return whole


def automatic(config: ml_collections.ConfigDict) -> dict[str, Callable[[int, int], float]]:
    """The entries of `AUTO` that `config` asks for."""
    given = dict(fields(config))
    return {name: value for name, value in AUTO.items() if given[name] == -1}


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` as an older version wrote it, with the fields that came later at what they were then, or their
    defaults."""
    whole = default_config()
    whole.data.validation_folds = 0
    with whole.unlocked():
        whole.update(config)
    return whole


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Fields in which a run cannot go on, as 'name: old -> new'."""
    old, new = dict(fields(old)), dict(fields(new))
    free = lambda name: any(name == field or name.startswith(field + ".") for field in FREE_ON_RESUME)
    return [
        f"config.{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if not free(name) and old.get(name) != new.get(name)
    ]
