"""What fields of a configuration say together: values that are sound each, of which one would do nothing, or harm,
beside the others. `config.check` calls this once every value by itself is one that it can be."""

import ml_collections

from idrid_jax.data import class_merging
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.training.losses import LOSSES

PENALTIES = ("r1", "r2", "gradient_penalty")


def check(config: ml_collections.ConfigDict, plain: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the field. plain: every field at its default."""
    _conditioning(config)
    _loss(config.loss)
    _accumulate(config)
    _schedule(config.schedule, config.loss)
    _augment(config.augment, plain.augment, config.loss.name)
    _data(config, plain)


def _conditioning(config) -> None:
    fades = [name for name in ("start_kimg", "ramp_kimg") if config.conditioning[name]]
    if fades and not NETWORKS[config.network].supports_conditioning_ramp:
        having = ", ".join(network for network, made in NETWORKS.items() if made.supports_conditioning_ramp)
        raise UserError(
            f"config.conditioning.{fades[0]} = {config.conditioning[fades[0]]}: {config.network} always hears its "
            f"grades, or none; it is for {having}"
        )


def _loss(loss) -> None:
    if loss.label_smoothing and loss.name != "bce":
        raise UserError(
            f"config.loss.label_smoothing = {loss.label_smoothing}: {loss.name} has no labels to smooth, set it to 0; "
            "only bce has them"
        )
    penalties = [name for name in PENALTIES if loss[name]]
    if loss.name == "wasserstein" and not penalties:
        raise UserError(
            "config.loss.name = 'wasserstein': its discriminator needs a bounded slope: set "
            "config.loss.gradient_penalty (10 in the paper) or config.loss.r1"
        )
    if loss.penalty_every > 1 and not penalties:
        raise UserError(
            f"config.loss.penalty_every = {loss.penalty_every}: no penalty is on, set config.loss.r1, r2 or "
            "gradient_penalty, or 1"
        )


def _accumulate(config) -> None:
    """Refuses what would make micro-batches another algorithm: functions of the batch as a whole."""
    if config.accumulate == 1:
        return
    if NETWORKS[config.network].batch_norm:
        without = ", ".join(name for name, network in NETWORKS.items() if not network.batch_norm)
        raise UserError(
            f"config.accumulate = {config.accumulate}: {config.network} has BatchNorm, whose statistics would be those "
            f"of a micro-batch: take 1 and a smaller config.batch_size; networks without it: {without}"
        )
    for name in ("lecam", "feature_matching"):
        if config.loss[name]:
            raise UserError(
                f"config.accumulate = {config.accumulate}: config.loss.{name} = {config.loss[name]} compares means "
                "over the whole batch, which a micro-batch does not have: set that to 0, or config.accumulate to 1"
            )


def _schedule(schedule, loss) -> None:
    for name in ("learning_rate_factor", "penalty_factor"):
        if schedule[name] != 1 and not schedule.kimg:
            raise UserError(
                f"config.schedule.{name} = {schedule[name]}: set config.schedule.kimg, over which it comes about"
            )
    if schedule.penalty_factor != 1 and not any(loss[name] for name in PENALTIES):
        raise UserError(
            f"config.schedule.penalty_factor = {schedule.penalty_factor}: no penalty is on, set config.loss.r1, r2 or "
            "gradient_penalty, or leave it at 1"
        )


# What a transform can be at most: beyond, an image is gone, or its light turned round
LIMITS = {"rotation": 180.0, "zoom": 0.4, "shift": 0.5, "brightness": 0.9, "contrast": 0.5, "saturation": 1.0}


def _augment(augment, plain, loss: str) -> None:
    for name, limit in LIMITS.items():
        if not 0 <= augment[name] <= limit:
            raise UserError(f"config.augment.{name} = {augment[name]}: must be in [0, {limit:g}]; 0 leaves it out")
    if not 0 <= augment.p <= 1:
        raise UserError(f"config.augment.p = {augment.p}: a probability, must be in [0, 1]")
    if not -1 < augment.target < 1:
        raise UserError(f"config.augment.target = {augment.target}: a mean of signs, must be above -1 and below 1")
    if not 0 < augment.kimg < float("inf"):
        raise UserError(f"config.augment.kimg = {augment.kimg}: must be above 0 and finite")
    for name, mode in (("p", "fixed"), ("target", "adaptive"), ("kimg", "adaptive")):
        if augment[name] != plain[name] and augment.mode != mode:
            raise UserError(
                f"config.augment.{name} = {augment[name]}: is of mode {mode}, not {augment.mode}: set "
                f"config.augment.mode to {mode}, or leave it at {plain[name]:g}"
            )
    if augment.mode == "adaptive" and not (LOSSES[loss].border or LOSSES[loss].pairs):
        raise UserError(
            f"config.augment.mode = 'adaptive': it goes by the sign of D's logits, and {loss}'s have no zero: take "
            "mode fixed, or another config.loss.name"
        )
    if augment.mode != "none" and not any(augment[name] for name in LIMITS):
        raise UserError(f"config.augment.mode = {augment.mode!r}: every transform is at 0: set one, or mode to none")


def _data(config, plain) -> None:
    data = config.data
    if data.validation_folds < 0 or data.validation_folds == 1:
        raise UserError(f"config.data.validation_folds = {data.validation_folds}: must be 0 (none) or at least 2")
    if not 0 < data.temperature < float("inf"):
        raise UserError(f"config.data.temperature = {data.temperature}: must be above 0 and finite")
    if data.temperature != plain.data.temperature and data.sampling != "tempered":
        raise UserError(
            f"config.data.temperature = {data.temperature}: {data.sampling} sampling has none, set "
            "config.data.sampling to tempered"
        )
    if data.canonicalize_laterality and data.flip:
        raise UserError(
            "config.data.flip = True: half of what config.data.canonicalize_laterality turns would be turned back: set one of "
            "the two to False"
        )
    class_merging.class_map(data.merge_classes)
    if data.merge_classes and not NETWORKS[config.network].conditional:
        raise UserError(
            f"config.data.merge_classes = {data.merge_classes!r}: {config.network} is unconditional, it has no grades to "
            "pool: leave it empty"
        )
    if data.min_images_per_class < 0:
        raise UserError(f"config.data.min_images_per_class = {data.min_images_per_class}: must not be negative")
