"""The configuration: its table of fields, its checks, the value "auto", and the files in configs/."""

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import LOSSES_ON

from idrid_jax import cli, config_checks
from idrid_jax import config as config_lib
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.training import augment, losses

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def make(**changes):
    """The default configuration of cgan32 with other values, named with two underscores for a dot."""
    config = config_lib.default_config()
    config.update_from_flattened_dict({"network": "cgan32"} | {k.replace("__", "."): v for k, v in changes.items()})
    return config


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- The table


def test_every_default_is_valid():
    whole = config_lib.validated(make())
    assert config_lib.flatten(whole).keys() == set(config_lib.TABLE) and len(config_lib.TABLE) == len(config_lib.FIELDS)
    for name, value in config_lib.flatten(config_lib.default_config()).items():
        assert value == config_lib.TABLE[name].default


def test_literal_choices_equal_the_code_they_name():
    assert config_lib.LOSSES == tuple(losses.LOSSES)
    assert config_checks.TRANSFORMS == augment.TRANSFORMS
    follows_signs = {name for name, loss in losses.LOSSES.items() if loss.zero_is_boundary or loss.paired}
    assert follows_signs == set(losses.LOSSES) - {"wasserstein"}  # which adaptive augmentation refuses


def test_help_documents_every_field_with_the_value_of_the_file(capsys):
    assert cli.main(["train", "--config", str(ROOT / "configs" / "retina64.py"), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    shown = {words[0]: words[1] for line in lines if len(words := line.lstrip(" *").split()) > 1}
    for field in config_lib.FIELDS:
        assert field.name in shown, field.name
    assert shown["batch_size"] == "8" and shown["loss.r1"] == "auto" and shown["seed"] == "0"
    assert any(line.startswith("  * batch_size") for line in lines)
    assert not any(line.startswith("  * seed") for line in lines)


# -- Values of one field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_kimg", float("inf")),
        ("total_kimg", float("nan")),
        ("snapshot_kimg", 0.0),
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 12.0),
        ("batch_size", "12"),
        ("seed", 2**32),
        ("seed", -1),
        ("ema_kimg", float("nan")),
        ("ema_kimg", "1"),
        ("ema_kimg", None),
        ("mesh.data", -1),
        ("mesh.data", 1.5),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", -0.1),
        ("optimizer.clip_norm", -1.0),
        ("loss.label_smoothing", 1.0),
        ("loss.r1", -1.0),
        ("loss.lecam", float("nan")),
        ("loss.lecam", "auto"),
        ("loss.penalty_every", 0),
        ("schedule.kimg", -5.0),
        ("checkpoint.keep_last", 0),
        ("data.flip", 1),
        ("data.temperature", 0.0),
        ("data.min_images_per_class", -1),
        ("data.held_out_fold", -1),
        ("data.held_out_fold", "auto"),
        ("network", 3),
        ("network", "retina96"),
        ("augment.rotation", -1.0),
        ("augment.zoom", 0.5),
        ("augment.contrast", float("nan")),
        ("augment.p", 1.5),
        ("augment.target", 1.0),
        ("augment.kimg", 0.0),
    ],
)
def test_a_value_out_of_bounds_or_of_another_type_is_refused(field, value):
    with pytest.raises(UserError) as caught:
        config_lib.validated(make(**{field: value}))
    assert f"config.{field} = {value!r}: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("data.pipeline", "residnt", "resident"),
        ("data.sampling", "temperd", "tempered"),
        ("network", "dcgan_128", "dcgan128"),
        ("dtype", "float16", "bfloat16"),
        ("loss.name", "hing", "hinge"),
        ("augment.mode", "adaptve", "adaptive"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_nearest(field, value, meant):
    with pytest.raises(UserError, match=f"config.{field} = '{value}': .*{meant}"):
        config_lib.validated(make(**{field: value}))


@pytest.mark.parametrize("field", ["dtype", "data.crop", "optimizer.b1"])
def test_a_missing_or_unknown_field_is_named(field):
    config = make()
    section, _, leaf = field.rpartition(".")
    group = config[section] if section else config
    del group[leaf]
    with pytest.raises(UserError, match=f"config.{field} is missing"):
        config_lib.validated(config)
    group[leaf + "x"] = 1
    with pytest.raises(UserError, match=f"config.{field}x: .*{field}"):
        config_lib.validated(config)


def test_a_whole_number_may_stand_for_a_fraction():
    whole = config_lib.validated(make(total_kimg=5, loss__r1=2))
    assert [type(whole.total_kimg), type(whole.loss.r1)] == [float, float]


# -- Values of several fields


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model.remat", dict(model__remat=True)),  # cgan32 cannot
        ("conditioning.ramp_kimg", dict(conditioning__ramp_kimg=5.0)),
        ("schedule.penalty_factor", dict(schedule__penalty_factor=0.1)),
        ("schedule.penalty_factor", dict(schedule__penalty_factor=0.1, schedule__kimg=5.0)),
        ("loss.penalty_every", dict(loss__penalty_every=4)),
        ("loss.name", dict(loss__name="wasserstein")),
        ("loss.label_smoothing", dict(loss__name="hinge", loss__label_smoothing=0.1)),
        ("augment.p", dict(augment__p=0.5)),
        ("augment.target", dict(augment__mode="fixed", augment__target=0.5)),
        ("augment.mode", dict(augment__mode="adaptive", loss__name="wasserstein", loss__gradient_penalty=10.0)),
        ("augment.mode", dict(augment__mode="fixed", **{f"augment__{name}": 0.0 for name in augment.TRANSFORMS})),
        ("data.temperature", dict(data__temperature=3.0)),
        ("data.flip", dict(data__canonicalize_laterality=True, data__flip=True)),
        ("data.validation_folds", dict(data__validation_folds=1)),
        ("data.merge_classes", dict(data__merge_classes="0 1+2 3")),
        ("data.merge_classes", dict(data__merge_classes="0 1+2 2+3 4")),
        ("data.merge_classes", dict(data__merge_classes="0,1+2 3 4")),
        ("data.merge_classes", dict(data__merge_classes="0 1+ 2 3 4")),
        ("data.merge_classes", dict(data__merge_classes="0 1+2 3+5")),
        ("data.merge_classes", dict(network="dcgan28", data__merge_classes="0 1+2 3 4")),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(field, changes):
    with pytest.raises(UserError, match=f"^config.{field} = ") as caught:
        config_lib.validated(make(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        LOSSES_ON,
        dict(loss__name="wasserstein", loss__r1=1.0),
        dict(loss__r1=1.0, loss__penalty_every=16),
        dict(augment__mode="adaptive", augment__target=0.5, augment__kimg=10.0, loss__name="relativistic"),
        dict(augment__rotation=30.0),  # with mode none, for `idrid-jax augment`
    ],
)
def test_a_combination_that_makes_sense_is_accepted(changes):
    config_lib.validated(make(**changes))  # must not raise


# -- "auto"


def test_auto_is_resolved():
    config = make(network="retina64", batch_size=32, loss__r1="auto", ema_kimg="auto")
    whole = config_lib.validated(config)
    assert config.loss.r1 == "auto" and whole.loss.r2 == 0  # a copy; nobody asked for r2
    assert whole.loss.r1 == 2e-4 * 64**2 / 32 and whole.ema_kimg == 10  # StyleGAN2-ADA's --cfg=auto
    assert whole.mesh.data == "auto"  # until the devices are known
    assert config_lib.validated(whole).to_dict() == whole.to_dict()
    assert config_lib.validated(make(network="retina256", batch_size=32, loss__r1="auto")).loss.r1 == 16 * whole.loss.r1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "auto"),
        (["--config.loss.r1=0.5"], 0.5),
        (["--config.loss.r1", "2"], 2),
        (["--config.loss.r1=0", "--config.loss.r1=auto"], "auto"),
    ],
)
def test_auto_on_the_command_line(arguments, expected):
    from absl import flags

    values = flags.FlagValues()
    words = ["--config", str(ROOT / "configs" / "retina64.py"), "--workdir=x", *arguments]
    cli.COMMANDS["train"].define(values, ["train", *words])
    cli.parse("train", values, words)
    assert values.config.loss.r1 == expected


# -- Resume


def test_fields_that_prevent_resuming_are_named():
    old, new = config_lib.validated(make()), config_lib.validated(make(total_kimg=5.0, mesh__rows=2, seed=3))
    assert config_lib.differences(old, new) == ["config.seed: 0 -> 3"]
    assert not config_lib.differences(old, old)


# -- The files


def test_there_is_a_configuration_for_each_network():
    assert {path.stem for path in CONFIGS} >= set(NETWORKS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files_are_valid_and_name_their_command(path):
    module = load(path)
    config = module.get_config()
    config_lib.validated(config)
    assert f"idrid-jax train --config configs/{path.name} --workdir runs/{path.stem}" in module.__doc__
    assert config.network == path.stem
    for field in re.findall(r"--config\.([\w.]+)", module.__doc__):
        assert field in config_lib.TABLE, field
    assert module.get_config() is not config  # a change to one is not a change to the next


@pytest.mark.parametrize("name", ["cgan32", "dcgan28", "dcgan64", "dcgan128"])
def test_configurations_of_the_thesis_use_none_of_the_later_options(name):
    config = load(ROOT / "configs" / f"{name}.py").get_config()
    assert "3.3" in load(ROOT / "configs" / f"{name}.py").__doc__, "section of the thesis"
    options = config.ema_kimg, config.loss.label_smoothing, config.optimizer.clip_norm, config.init_from
    assert options == (0, 0, 0, "")
