"""Starting from another run's networks: which layers fit, and that those alone are copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, changed, make_config

from idrid_jax import config as config_lib
from idrid_jax import models
from idrid_jax.data import splits
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, transfer
from idrid_jax.training import checkpoint, sharding
from idrid_jax.training.checkpoint import Checkpoints, init_from_run
from idrid_jax.training.run_dir import write_record
from idrid_jax.training.state import fresh_state, single_device_state


@pytest.fixture
def small(monkeypatch):
    """retina32 beside retina64. Where all levels have 8 channels, shapes alone do not tell them apart."""
    monkeypatch.setitem(NETWORKS, "retina32", models._retina(32))


def configured(data, network, **changes):
    return make_config(data, network, model__max_channels=8, **changes)


def left(config, workdir):
    """What a run leaves, with arrays that no fresh state has."""
    leaves, tree = jax.tree.flatten(fresh(config))
    rng = np.random.default_rng(0)
    state = jax.tree.unflatten(tree, [x + jnp.asarray(rng.uniform(1, 2, x.shape), x.dtype) for x in leaves])
    manifest = splits.find_release(config)
    workdir.mkdir()
    write_record(workdir, config, manifest)
    with Checkpoints(workdir, manifest.fingerprint) as checkpoints:
        checkpoints.save(1, state)
    return state


def fresh(config):
    return fresh_state(config, sharding.make_mesh(1))


def test_a_larger_network_takes_the_levels_of_as_many_pixels(small, phantom_data, tmp_path):
    """Generators list them from 4 pixels up, discriminators from the image down."""
    source = left(configured(phantom_data, "retina32", ema_kimg=0.05), tmp_path / "source")
    config = configured(phantom_data, "retina64", ema_kimg=0.05, seed=1, init_from=str(tmp_path / "source"))
    start, notes = init_from_run(config, before := fresh(config))
    for params, there, begun in (
        (start.g.params, source.g.params, before.g.params),
        (start.ema, source.ema, before.g.params),
    ):
        for part in ("embed", "latent", "image"):
            assert_same(params[part], there[part])
        for level in (0, 1, 2):  # 8, 16 and 32 pixels
            assert_same(params["up"][level], there["up"][level])
        assert_same(params["up"][3], begun["up"][3])
    for part in ("image", "last", "logit", "embed"):
        assert_same(start.d.params[part], source.d.params[part])
    for level in (1, 2):  # from 16 and from 8 pixels
        assert_same(start.d.params["down"][level], source.d.params["down"][level - 1])
    assert_same(start.d.params["down"][0], before.d.params["down"][0])
    assert_same((start.g.opt, start.d.opt, start.step), (before.g.opt, before.d.opt, before.step))
    parts = (
        "generator: embed, image, latent, up/0, up/1, up/2; discriminator: down/1, down/2, embed, image, last, logit"
    )
    assert f"38 of 48 arrays of retina64 fit ({parts})" in notes[0]


def test_a_home_in_the_name_of_the_run(config, tmp_path, monkeypatch):
    """The shell leaves --config.init_from=~/x alone."""
    left(config, tmp_path / "source")
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint.find_source(changed(config, init_from="~/source"))  # must not raise


def test_a_smaller_network_takes_them_too(small, phantom_data, tmp_path):
    source = left(configured(phantom_data, "retina64"), tmp_path / "source")
    config = configured(phantom_data, "retina32", seed=1, init_from=str(tmp_path / "source"))
    start, notes = init_from_run(config, fresh(config))
    assert len(notes) == 1 and "(retina64): all 38 " in notes[0]
    assert [start.g.params["up"][i]["first"]["kernel"].tolist() for i in (0, 1)] == [
        source.g.params["up"][i]["first"]["kernel"].tolist() for i in (0, 1)
    ]
    assert_same(start.d.params["down"][0], source.d.params["down"][1])


def test_statistics_go_with_their_layer(config, tmp_path):
    """BatchNorm's scale and mean are taken together."""
    source = left(config, tmp_path / "source")
    start, notes = init_from_run(changed(config, init_from=str(tmp_path / "source")), fresh(config))
    assert_same((start.g.params, start.g.stats), (source.g.params, source.g.stats))
    assert_same((start.d.params, start.d.stats), (source.d.params, source.d.stats))
    assert len(notes) == 1 and "(tiny): all 18 " in notes[0]


def fits(name, most, other, others_most):
    """Check fits as `init_from_run` does, on shapes; return their description."""
    configs, states = [], []
    for network, channels in ((name, most), (other, others_most)):
        config = config_lib.default_config()
        config.network, config.model.max_channels, config.init_from = network, channels, "runs/x"
        configs.append(config)
        states.append(single_device_state(config))
    mine, theirs = states
    found = [
        transfer.fit((a.params, a.stats), (b.params, b.stats), coarsest_last=last)
        for a, b, last in ((mine.g, theirs.g, False), (mine.d, theirs.d, True))
    ]
    checkpoint._check_fits(*configs, found)
    return checkpoint._describe_fits(*configs, found)


@pytest.mark.parametrize(
    "pair, line",
    [
        (
            ("retina128", 128, "retina64", 128),
            "34 of 61 arrays of retina128 fit (generator: embed, image, latent, up/0, up/1, up/2/style; "
            "discriminator: down/2, down/3, embed, image, last, logit)",
        ),
        (
            ("dcgan512", 512, "dcgan256", 512),
            "32 of 68 arrays of dcgan512 fit (generator: image, norm/0, norm/1, norm/2, up/0, up/1, up/2; "
            "discriminator: down/4, down/5, image, logit, norm/3, norm/4, norm/5)",
        ),
        (("dcgan128", 512, "dcgan64", 512), "36 of 38 arrays of dcgan128 fit (generator: norm, up; "),
    ],
)
def test_what_fits_of_the_real_networks(pair, line):
    assert f"from runs/x ({pair[2]}): {line}" in fits(*pair)


@pytest.mark.parametrize(
    "pair, parts",
    [
        (("retina128", 256, "retina64", 128), ["5 of 63 arrays", "set config.model.max_channels to 128"]),
        (("cgan32", 512, "dcgan28", 512), ["0 of 20 arrays", "name a run of cgan32"]),
        (("dcgan64", 512, "retina64", 128), ["0 of 38 arrays", "name a run of dcgan64 or dcgan128"]),
    ],
)
def test_what_does_not_fit_is_refused(pair, parts):
    with pytest.raises(UserError, match="^config.init_from = 'runs/x': ") as error:
        fits(*pair)
    assert all(part in str(error.value) for part in parts)
