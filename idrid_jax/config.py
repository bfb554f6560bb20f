"""The configuration: `FIELDS` is the reference of all fields. A file in `configs/` changes some of them and says why.

To add a field, add an entry to `FIELDS`; defaults, checks, resume and `train --config FILE --help` follow from it.
Rules that concern several fields are in `config_checks.py`. Progress is counted in kimg: thousands of real images in
discriminator batches (D is the discriminator, G the generator).
"""

import abc
import dataclasses
import runpy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ml_collections

from idrid_jax import config_checks
from idrid_jax.data.folds import NO_FOLD, NUM_HELD_OUT_FOLDS
from idrid_jax.data.pipeline.batch_order import SAMPLINGS
from idrid_jax.data.preprocess import CROPS
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models import NETWORKS

AUTO = "auto"
DTYPES = ("float32", "bfloat16")
LOSSES = ("bce", "hinge", "relativistic", "wasserstein")  # equal to training.losses.LOSSES, which is not imported here

# Intervals of `Field.bounds`
POSITIVE, NOT_NEGATIVE, AT_LEAST_1 = "(0, inf)", "[0, inf)", "[1, inf)"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the configuration.

    Attributes:
      name: dotted name; "loss.r1" is config.loss.r1 and --config.loss.r1.
      default: the default value.
      doc: what the field means.
      unit: unit of the value.
      bounds: interval of allowed numbers, such as "[0, 1)".
      choices: allowed texts.
      resume: the value may change when a run resumes; all others are part of what its checkpoints mean.
      auto: the field may be `word`, which `validated` replaces by auto(config); the docstring says what that is.
      word: "auto", or another word that is no number.
      kind: type of the value, if it is not the default's.
    """

    name: str
    default: Any
    doc: str
    unit: str = ""
    bounds: str = ""
    choices: Collection[str] = ()
    resume: bool = False
    auto: Callable[[ml_collections.ConfigDict], Any] | None = None
    word: str = AUTO
    kind: type | None = None

    @property
    def value_type(self) -> type:
        return self.kind or type(self.default)

    @property
    def expected(self) -> str:
        """The type in words."""
        words = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}[self.value_type]
        return f'{words} or "{self.word}"' if self.auto else words


# -- What "auto" computes


def _auto_penalty(config) -> float:
    """2e-4 * size**2 / batch_size, size in pixels (StyleGAN2-ADA's heuristic)"""
    return 2e-4 * NETWORKS[config.network].size ** 2 / config.batch_size


def _auto_ema(config) -> float:
    """batch_size * 10 / 32 (StyleGAN2-ADA's heuristic)"""
    return config.batch_size * 10 / 32


def _auto_mesh(config) -> str:
    """all devices, divided by mesh.rows"""
    return AUTO  # the mesh is made later, where the devices are known


def _no_fold(config) -> str:
    """the official splits"""
    return NO_FOLD


# fmt: off
FIELDS = (
    # -- Run
    Field("network", "", "a pair of networks of idrid_jax.models.NETWORKS", choices=NETWORKS),
    Field("seed", 0, "everything random is a function of (seed, step)", bounds="[0, 4294967296)"),
    Field("batch_size", 128, "images per update over all devices and processes", bounds=AT_LEAST_1),
    Field("dispatch_steps", 1, "updates per call of the compiled step; more save time of the host", bounds=AT_LEAST_1),
    Field("total_kimg", 100.0, "length of training", unit="kimg", bounds=POSITIVE, resume=True),
    Field("snapshot_kimg", 10.0, "interval of snapshots: checkpoint, image grid, metrics",
          unit="kimg", bounds=POSITIVE, resume=True),
    Field("log_kimg", 1.0, "interval of losses on the console, in stats.jsonl and TensorBoard",
          unit="kimg", bounds=POSITIVE, resume=True),
    Field("on_collapse", "warn", "action on mode collapse of G and on saturation of D",
          choices=("warn", "stop", "ignore"), resume=True),
    Field("dtype", "float32", "dtype of activations; parameters, statistics and losses are float32", choices=DTYPES),
    Field("init_from", "", "run directory whose networks training starts from; of another size, the layers that fit"),

    # -- Networks
    Field("model.max_channels", 512, "maximum number of channels of a layer, for dcgan256 and larger and retina",
          bounds=AT_LEAST_1),
    Field("model.remat", False, "recompute activations in the backward pass: less memory, more time", resume=True),

    # -- Optimizers: Adam for both networks
    Field("optimizer.g_learning_rate", 2e-4, "learning rate of G", bounds=NOT_NEGATIVE),
    Field("optimizer.d_learning_rate", 2e-4, "learning rate of D", bounds=NOT_NEGATIVE),
    Field("optimizer.b1", 0.5, "decay of Adam's first moment; 0.5: Radford et al. 2016, section 4", bounds="[0, 1)"),
    Field("optimizer.b2", 0.999, "decay of Adam's second moment", bounds="[0, 1)"),
    Field("optimizer.clip_norm", 0.0, "largest global norm of a gradient; 0 = no clipping", bounds=NOT_NEGATIVE),

    # -- Losses: equations in training/losses.py; a weight of 0 turns a term off
    Field("loss.name", "bce", "adversarial loss", choices=LOSSES),
    Field("loss.label_smoothing", 0.0, "one-sided smoothing of the real images' target, for bce", bounds="[0, 1)"),
    Field("loss.r1", 0.0, "gamma of gamma/2 |grad D|^2 on real images", bounds=NOT_NEGATIVE, auto=_auto_penalty),
    Field("loss.r2", 0.0, "gamma of gamma/2 |grad D|^2 on fake images", bounds=NOT_NEGATIVE, auto=_auto_penalty),
    Field("loss.gradient_penalty", 0.0, "weight of (|grad D| - 1)^2 between real and fake images; 10: Gulrajani et al. "
          "2017", bounds=NOT_NEGATIVE),
    Field("loss.penalty_every", 1, "interval of r1, r2 and gradient_penalty, which are multiplied by it",
          unit="updates", bounds=AT_LEAST_1),
    Field("loss.lecam", 0.0, "weight of LeCam regularization of D's logits, for little data", bounds=NOT_NEGATIVE),
    Field("loss.feature_matching", 0.0, "weight, in G's loss, of the squared distance between D's mean features of "
          "real and of fake images", bounds=NOT_NEGATIVE),

    # -- Moving average of G
    Field("ema_kimg", 0.0, "half-life of a moving average of G, which is then sampled; 0 = none",
          unit="kimg", bounds=NOT_NEGATIVE, auto=_auto_ema),

    # -- Schedule: factors that go from 1 to their value along a cosine, then stay
    Field("schedule.kimg", 0.0, "length of the cosine; 0 = constant", unit="kimg", bounds=NOT_NEGATIVE),
    Field("schedule.learning_rate_factor", 1.0, "final factor of both learning rates", bounds=NOT_NEGATIVE),
    Field("schedule.penalty_factor", 1.0, "final factor of r1, r2 and gradient_penalty", bounds=NOT_NEGATIVE),

    # -- Conditioning: retina networks can learn without the grades first
    Field("conditioning.start_kimg", 0.0, "until then the conditioning strength is 0",
          unit="kimg", bounds=NOT_NEGATIVE),
    Field("conditioning.ramp_kimg", 0.0, "then it rises to 1 over this length; 0 = at once",
          unit="kimg", bounds=NOT_NEGATIVE),

    # -- Data
    Field("data.release", "", "fingerprint (or its beginning) or path of a prepared release; empty = the latest",
          resume=True),
    Field("data.data_dir", "", "folder of prepared data; empty = $TFDS_DATA_DIR, or else ~/tensorflow_datasets",
          resume=True),
    Field("data.pipeline", "auto", "resident: the split in device memory; tfdata: tf.data; auto: resident if the split "
          "fits resident_mib", choices=("auto", "resident", "tfdata"), resume=True),
    Field("data.resident_mib", 4096.0, "device memory for a resident split",
          unit="MiB", bounds=NOT_NEGATIVE, resume=True),
    Field("data.crop", "field_of_view", "field_of_view: the square around the retina; letterbox: the whole frame with "
          "its aspect ratio (the thesis)", choices=CROPS),
    Field("data.sampling", "natural", "natural: grades as frequent as in the data; balanced: equally frequent; "
          "tempered: between them", choices=SAMPLINGS),
    Field("data.temperature", 2.0, "of tempered: a grade's frequency is its count ** (1 / temperature); 1 = natural",
          bounds=POSITIVE),
    Field("data.flip", False, "mirror real images left to right at random"),
    Field("data.canonicalize_laterality", False, "mirror real images with the optic disc on the left; the same share "
          "of generated images is mirrored back"),
    Field("data.merge_classes", "", 'grades joined by + are one class to the networks, such as "0 1+2 3+4"; empty = '
          "five classes"),
    Field("data.min_images_per_class", 5, "minimum number of training photographs per class for a conditional "
          "network",
          bounds=NOT_NEGATIVE, resume=True),
    Field("data.validation_folds", 8, "number of folds of the training split, one of which is held out to choose the "
          "checkpoint; 0 = none held out", bounds=NOT_NEGATIVE),
    Field("data.held_out_fold", NO_FOLD, "train on four of five folds of the training and test splits together, and "
          "evaluate on this one, which the run never sees", bounds=f"[0, {NUM_HELD_OUT_FOLDS - 1}]", auto=_no_fold,
          word=NO_FOLD, kind=int),

    # -- Augmentation of all images before D: see training/augment.py; amounts are uniform, 0 turns a transform off
    Field("augment.mode", "none", "fixed: each transform with probability p; adaptive: p follows how certain D is",
          choices=("none", "fixed", "adaptive")),
    Field("augment.p", 1.0, "of fixed: probability of each transform for each image", bounds="[0, 1]"),
    Field("augment.target", 0.6, "of adaptive: p rises while the mean sign of D's real logits (relativistic: of real "
          "minus fake) is higher", bounds="(-1, 1)"),
    Field("augment.kimg", 100.0, "of adaptive: shortest time for p to go from 0 to 1", unit="kimg", bounds=POSITIVE),
    Field("augment.rotation", 10.0, "largest angle, either way", unit="degrees", bounds="[0, 180]"),
    Field("augment.zoom", 0.06, "largest relative change of size", bounds="[0, 0.4]"),
    Field("augment.shift", 0.03, "largest shift along rows and columns", unit="of the side", bounds="[0, 0.5]"),
    Field("augment.brightness", 0.15, "brightness is multiplied by 1 - value to 1 + value", bounds="[0, 0.9]"),
    Field("augment.contrast", 0.15, "contrast is multiplied by 1 - value to 1 + value", bounds="[0, 0.5]"),
    Field("augment.saturation", 0.15, "saturation is multiplied by 1 - value to 1 + value", bounds="[0, 1]"),

    # -- Devices
    Field("mesh.data", "auto", "devices along the batch", bounds=AT_LEAST_1, resume=True, auto=_auto_mesh, kind=int),
    Field("mesh.rows", 1, "devices that share the rows of each image", bounds=AT_LEAST_1, resume=True),
    Field("mesh.fsdp", False, "shard parameters and optimizer states over the devices along the batch", resume=True),

    # -- Checkpoints
    Field("checkpoint.keep_last", 3, "number of newest checkpoints to keep", bounds=AT_LEAST_1, resume=True),
    Field("checkpoint.keep_every_kimg", 0.0, "also keep checkpoints at multiples of this; 0 = none",
          unit="kimg", bounds=NOT_NEGATIVE, resume=True),
    Field("checkpoint.best", "kid_imagenet", "metric of evaluation/snapshot_metrics.py; the checkpoint with the "
          "lowest value is kept and sampled; empty = the newest"),

    # -- Log
    Field("log.console", "bar", 'bar: progress bar; thesis: its lines "[epoch/epochs][batch/batches] Loss_D: ..."',
          choices=("bar", "thesis"), resume=True),
)
# fmt: on
TABLE = {field.name: field for field in FIELDS}


# -- Making a configuration


class WordOrNumber(abc.ABC):
    """The type of a field that may be a word or a number, for ml_collections; `cli.parsing` registers its parser."""


for _type in (str, int, float):
    WordOrNumber.register(_type)


def default_config() -> ml_collections.ConfigDict:
    """Return a configuration with every field at its default.

    Its values are checked by `validated`, not at assignment, so that messages name the field.
    """
    config = ml_collections.ConfigDict(type_safe=False)
    for field in FIELDS:
        section, _, name = field.name.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict(type_safe=False)
        value = ml_collections.FieldReference(field.default, WordOrNumber) if field.auto else field.default
        (config[section] if section else config)[name] = value
    return config


def base(file: str, path: str) -> ml_collections.ConfigDict:
    """Return the configuration of another file, for a file that changes some of its fields.

    Args:
      file: the calling file's `__file__`.
      path: the other file, relative to `file`.
    """
    return runpy.run_path(str(Path(file).parent / path))["get_config"]()


# -- Checking and resolving it


def validated(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Check every field and return a copy in which "auto" is resolved.

    Raises:
      UserError: names the first field with a value that no run can have.
    """
    values = flatten(config)
    for name in values:
        if name not in TABLE:
            raise UserError(f"config.{name}: no such field; {suggest_name(name, TABLE)}")
    for field in FIELDS:
        if field.name not in values:
            raise UserError(f"config.{field.name} is missing: begin the file with idrid_jax.config.default_config()")
        _check_value(field, values[field.name])
    config_checks.check(config, flatten(default_config()))
    for field in FIELDS:
        if field.auto and values[field.name] == field.word:
            values[field.name] = field.auto(config)
        if field.value_type is float:
            values[field.name] = float(values[field.name])
    return _nested(values)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {dotted name: value} of every field, sorted by name."""
    values = {}
    for name, value in sorted(config.items()):
        if isinstance(value, ml_collections.ConfigDict):
            values |= flatten(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def _nested(values: dict[str, Any]) -> ml_collections.ConfigDict:
    """Return the configuration with these values by dotted name."""
    config = ml_collections.ConfigDict(default_config().to_dict(), type_safe=False)
    config.update_from_flattened_dict(values)
    return config


def _check_value(field: Field, value: Any) -> None:
    where = f"config.{field.name} = {value!r}"
    if field.auto and value == field.word:
        return
    types = (int, float) if field.value_type is float else field.value_type
    if not isinstance(value, types) or isinstance(value, bool) != (field.value_type is bool):
        raise UserError(f"{where}: must be {field.expected}")
    if field.choices and value not in field.choices:
        raise UserError(f"{where}: {suggest_name(value, field.choices)}")
    if field.bounds and not _inside(value, field.bounds):
        low, high = field.bounds[1:-1].split(", ")
        wanted = f"in {field.bounds}"
        if high == "inf":
            wanted = f"{'at least' if field.bounds[0] == '[' else 'above'} {low}"
            wanted += " and finite" if field.value_type is float else ""
        raise UserError(f"{where}: must be {wanted}")


def _inside(value: float, bounds: str) -> bool:
    """Return whether `value` lies in an interval such as "[0, 1)"."""
    low, high = map(float, bounds[1:-1].split(","))
    return (value > low or value == low and bounds[0] == "[") and (value < high or value == high and bounds[-1] == "]")


# -- Reading it


def describe(field: Field) -> str:
    """Return the documentation of a field for --help, without its value and unit."""
    text = field.doc
    if not all(choice in field.doc for choice in field.choices):
        text += f"; one of {', '.join(field.choices)}"
    if field.bounds not in ("", POSITIVE, NOT_NEGATIVE, AT_LEAST_1):
        text += f"; in {field.bounds}"
    if field.auto:
        text += f"; {field.word} = {field.auto.__doc__}"
    return text + (" (resume)" if field.resume else "")


def steps(kimg: float, config: ml_collections.ConfigDict) -> int:
    """Return the number of updates nearest to `kimg`, in whole calls of the compiled step and at least one call."""
    return config.dispatch_steps * max(1, round(kimg * 1000 / config.batch_size / config.dispatch_steps))


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Return the fields that prevent a run with configuration `old` from resuming with `new`: 'name: old -> new'."""
    old, new = flatten(old), flatten(new)
    return [
        f"config.{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not (name in TABLE and TABLE[name].resume)
    ]
