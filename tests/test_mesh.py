"""The number of devices changes no result: one device against eight simulated ones, all four networks, both ways in."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, changed, make_config

from idrid_jax.data import cache
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.training import build, mesh
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.loop import train
from idrid_jax.training.state import init_state
from idrid_jax.training.step import Update

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::FutureWarning")]
BATCH = 8


@functools.cache
def made_up(size, channels):
    """A split of random photographs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, size, size, channels), np.uint8)
    return cache.Split(
        images, rng.integers(0, 5, 24).astype(np.int32), np.zeros(24, np.int32), tuple(map(str, range(24)))
    )


@functools.cache
def one_step(name, devices, *, way="resident", dtype="float32"):
    """A step of SGD, whose update is the gradient: -> state before, state after, metrics. Parameters are float32."""
    with jax.enable_x64(dtype == "float64"):
        return _one_step(name, devices, way, dtype)


def _one_step(name, devices, way, dtype):
    network = NETWORKS[name]
    config = make_config("", name, mesh__data=devices, dtype=dtype, data__way=way, batch_size=BATCH)
    generator, discriminator = build.networks(config)
    tx = optax.sgd(1e-2)
    update = Update(generator, discriminator, tx, tx, latent=network.latent)
    the_mesh = mesh.make_mesh(devices)
    init = jax.jit(
        lambda key: init_state(key, generator, discriminator, tx, tx, ema=False),
        out_shardings=mesh.replicated(the_mesh),
    )
    state = init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state)
    step = build.compile_step(config, update, the_mesh, made_up(network.size, network.channels), 0)
    after, metrics = step(state)
    assert all(
        leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == devices
        for leaf in jax.tree.leaves(after)
    )
    return before, jax.tree.map(np.asarray, after), {name: float(value) for name, value in metrics.items()}


# Eight devices fed by `stream` are held to one that is fed by `resident`, so that both ways in are one result. A way
# differs in how a batch comes to the devices alone, so two networks do for it.
@pytest.mark.parametrize(
    "network, way",
    [
        ("cgan32", "stream"),
        ("dcgan28", "resident"),
        ("dcgan28", "stream"),
        ("dcgan64", "resident"),
        ("dcgan128", "resident"),
    ],
)
def test_eight_devices_compute_what_one_does(network, way, monkeypatch):
    """Losses, gradients and statistics, with dropout; BatchNorm is over the global batch, one image a device."""
    # In float32 a value within rounding of a ReLU's kink falls to either side, and moves a gradient by per cents.
    dtype, tolerance = "float64", 2e-5
    if network in ("dcgan64", "dcgan128"):  # their layers, an eighth as wide
        wide = NETWORKS[network]
        generator, discriminator = (
            functools.partial(module, width=8) for module in (wide.generator, wide.discriminator)
        )
        monkeypatch.setitem(
            NETWORKS, network, dataclasses.replace(wide, generator=generator, discriminator=discriminator)
        )
    before, one, metrics = one_step(network, 1, dtype=dtype)
    same_start, eight, metrics_of_eight = one_step(network, 8, way=way, dtype=dtype)
    assert_same(before, same_start)
    assert metrics_of_eight == pytest.approx(metrics, rel=tolerance)
    worst = {}
    for name in ("g", "d"):
        start, a, b = (getattr(state, name) for state in (before, one, eight))
        for part, s, x, y in (
            ("gradient", start.params, a.params, b.params),
            ("statistics", start.stats, a.stats, b.stats),
        ):
            # as a share of the part's largest change
            largest = max(
                (np.abs(i - j).max() for i, j in zip(jax.tree.leaves(x), jax.tree.leaves(s), strict=True)), default=0
            )
            for i, j in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
                worst[name, part] = max(worst.get((name, part), 0), float(np.abs(i - j).max() / largest))
    assert max(worst.values()) <= tolerance, worst


@pytest.mark.parametrize("network", ["cgan32", "dcgan28"])
def test_each_device_computes_its_share_alone(monkeypatch, network):
    """In the compiled step every convolution and product is over an eighth of the batch, fakes included."""
    texts = []
    jit = jax.jit

    def spy(function, **options):
        jitted = jit(function, **options)

        def call(*arguments):
            if "donate_argnums" in options:  # the step
                texts.append(jitted.lower(*arguments).compile().as_text())
            return jitted(*arguments)

        return call

    monkeypatch.setattr(jax, "jit", spy)
    config = make_config("", network, mesh__data=8, batch_size=24)
    made = NETWORKS[network]
    the_mesh = mesh.make_mesh(8)
    update, init = build.make_update(config, *build.networks(config))
    state = jit(init, out_shardings=mesh.replicated(the_mesh))(jax.random.key(0))
    build.compile_step(config, update, the_mesh, made_up(made.size, made.channels), 0)(state)
    heavy = re.findall(r"= f32\[(\d+)[,\d]*\]\S* (?:convolution|dot|custom-call)\(", texts[0])
    assert "3" in heavy and "24" not in heavy


def test_a_run_moves_between_devices(config, tmp_path):
    """Saved on eight, resumed on one and on two."""
    whole = train(config, tmp_path / "whole")
    for devices, kimg in ((8, 0.032), (1, 0.064), (2, 0.096)):
        state = train(changed(config, mesh__data=devices, total_kimg=kimg), tmp_path / "moving")
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
    assert int(state.step) == 12
    for a, b in zip(jax.tree.leaves(whole.g.params), jax.tree.leaves(state.g.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # Adam's steps are 2e-4


def test_all_devices_is_the_default(config, tmp_path):
    assert mesh.make_mesh().size == mesh.make_mesh(-1).size == len(jax.devices()) == 8
    state = train(changed(config, mesh__data=-1, total_kimg=0.008), tmp_path)
    assert len(state.step.sharding.device_set) == 8


@pytest.mark.parametrize("devices, batch_size", [(8, 12), (-1, 4), (3, 8)])
def test_a_batch_that_does_not_divide_is_refused(config, tmp_path, devices, batch_size):
    with pytest.raises(
        UserError,
        match=f"config.batch_size = {batch_size} is not divisible by {abs(devices) if devices > 0 else 8} devices",
    ):
        train(changed(config, mesh__data=devices, batch_size=batch_size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [9, 0, -2])
def test_devices_that_are_not_there_are_refused(config, tmp_path, devices):
    with pytest.raises(UserError, match=f"config.mesh.data = {devices}: 8 devices are there"):
        train(changed(config, mesh__data=devices), tmp_path)


def test_bfloat16_computes_so_and_keeps_float32(config, tmp_path):
    """Parameters, statistics and optimizers stay float32, here and on disk."""
    state = train(changed(config, dtype="bfloat16", ema_kimg=0.05), tmp_path)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")} and all(
        np.isfinite(leaf).all() for leaf in floats[:-1]
    )
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(state), state)


@pytest.mark.parametrize("network", ["cgan32", "dcgan28"])
def test_bfloat16_of_the_real_networks(network):
    (_, after, metrics), (*_, exact) = one_step(network, 1, dtype="bfloat16"), one_step(network, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.g, after.d))} == {np.dtype("float32")}
    for name in ("loss_d", "d_real", "d_fake_before"):
        assert metrics[name] == pytest.approx(exact[name], rel=0.05) and metrics[name] != exact[name]
