"""Rules that concern several fields of a configuration: values that are valid each, but useless or harmful together."""

from typing import Any

import ml_collections

from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, class_merging

PENALTIES = ("r1", "r2", "gradient_penalty")  # of config.loss
TRANSFORMS = ("rotation", "zoom", "shift", "brightness", "contrast", "saturation")  # of config.augment
SET_A_PENALTY = "no penalty is on; set config.loss.r1, config.loss.r2 or config.loss.gradient_penalty"


def check(config: ml_collections.ConfigDict, defaults: dict[str, Any]) -> None:
    """Raise UserError, naming the field, for a combination that no run can have.

    Args:
      config: each value is valid by itself.
      defaults: the default of each field by its dotted name.
    """
    _check_network_options(config, defaults)
    _check_loss(config.loss)
    _check_schedule(config.schedule, config.loss)
    _check_augment(config.augment, config.loss.name, defaults)
    _check_data(config, defaults)


def _check_network_options(config, defaults) -> None:
    network = NETWORKS[config.network]
    for name in config.model:
        if config.model[name] != defaults[f"model.{name}"] and name not in network.options:
            others = ", ".join(other for other in NETWORKS if name in NETWORKS[other].options)
            raise UserError(
                f"config.model.{name} = {config.model[name]!r}: {config.network} has no such option; it is for {others}"
            )
    for name in ("start_kimg", "ramp_kimg"):
        if config.conditioning[name] and not network.supports_conditioning_ramp:
            others = ", ".join(other for other in NETWORKS if NETWORKS[other].supports_conditioning_ramp)
            raise UserError(
                f"config.conditioning.{name} = {config.conditioning[name]}: the conditioning strength of "
                f"{config.network} is fixed; the field is for {others}"
            )


def _check_loss(loss) -> None:
    penalty = any(loss[name] for name in PENALTIES)
    if loss.label_smoothing and loss.name != "bce":
        raise UserError(
            f"config.loss.label_smoothing = {loss.label_smoothing}: only bce has labels to smooth, {loss.name} has none"
        )
    if loss.name == "wasserstein" and not penalty:
        raise UserError(
            "config.loss.name = 'wasserstein': D needs a gradient penalty; set config.loss.gradient_penalty (10 in the "
            "paper), config.loss.r1 or config.loss.r2"
        )
    if loss.penalty_every > 1 and not penalty:
        raise UserError(f"config.loss.penalty_every = {loss.penalty_every}: {SET_A_PENALTY}")


def _check_schedule(schedule, loss) -> None:
    for name in ("learning_rate_factor", "penalty_factor"):
        if schedule[name] != 1 and not schedule.kimg:
            raise UserError(f"config.schedule.{name} = {schedule[name]}: also set config.schedule.kimg, its length")
    if schedule.penalty_factor != 1 and not any(loss[name] for name in PENALTIES):
        raise UserError(f"config.schedule.penalty_factor = {schedule.penalty_factor}: {SET_A_PENALTY}")


def _check_augment(augment, loss: str, defaults) -> None:
    for name, mode in (("p", "fixed"), ("target", "adaptive"), ("kimg", "adaptive")):
        if augment[name] != defaults[f"augment.{name}"] and augment.mode != mode:
            raise UserError(
                f"config.augment.{name} = {augment[name]}: it belongs to mode {mode}, but config.augment.mode is "
                f"{augment.mode}"
            )
    if augment.mode == "adaptive" and loss == "wasserstein":
        raise UserError(
            "config.augment.mode = 'adaptive': it follows the sign of D's logits, which means nothing under "
            "wasserstein; choose mode fixed, or another config.loss.name"
        )
    if augment.mode != "none" and not any(augment[name] for name in TRANSFORMS):
        raise UserError(f"config.augment.mode = {augment.mode!r}: every transform is 0; set one, or mode to none")


def _check_data(config, defaults) -> None:
    data = config.data
    if data.validation_folds == 1:
        raise UserError("config.data.validation_folds = 1: must be 0 (none) or at least 2")
    if data.temperature != defaults["data.temperature"] and data.sampling != "tempered":
        raise UserError(
            f"config.data.temperature = {data.temperature}: {data.sampling} sampling has no temperature; set "
            "config.data.sampling to tempered"
        )
    if data.canonicalize_laterality and data.flip:
        raise UserError(
            "config.data.flip = True: it would undo config.data.canonicalize_laterality; set one of the two to False"
        )
    class_merging.class_map(data.merge_classes)
    if data.merge_classes and not NETWORKS[config.network].conditional:
        raise UserError(
            f"config.data.merge_classes = {data.merge_classes!r}: {config.network} is unconditional and has no classes "
            "to merge; leave it empty"
        )
