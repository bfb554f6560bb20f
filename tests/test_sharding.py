"""The number of devices changes no result: one device against eight simulated ones, all four networks, both ways in."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, changed, make_config

from idrid_jax.data import cache
from idrid_jax.data.pipeline import choose_pipeline, is_sharded, resident
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.training import build, sharding, train_step
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.loop import train
from idrid_jax.training.objectives import Weights
from idrid_jax.training.state import init_state
from idrid_jax.training.update import Update

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
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
def some_steps(name, data, *, rows=1, fsdp=False, way="resident", steps=1, batch=BATCH, dtype="float32", losses=""):
    """SGD, whose update is the gradient: -> state before, state after, metrics of each step. Parameters are float32."""
    with jax.enable_x64(dtype == "float64"):
        return _some_steps(name, data, rows, fsdp, way, steps, batch, dtype, losses)


WEIGHTS = {  # between them all that a step differentiates twice, or carries along
    "": Weights(),
    "relativistic": Weights(r1=0.5, r2=0.3, lecam=0.3),
    "wasserstein": Weights(gradient_penalty=2.0, feature_matching=0.1),
    "hinge": Weights(r1=0.5, penalty_every=2),
}


def _some_steps(name, data, rows, fsdp, way, steps, batch, dtype, losses):
    network = NETWORKS[name]
    config = make_config(
        "", name, mesh__data=data, mesh__rows=rows, mesh__fsdp=fsdp, dtype=dtype, batch_size=batch, dispatch_steps=steps
    )
    if name.startswith("retina"):
        config.model.max_channels = 8
    config.data.pipeline = way.removesuffix(" in parts")
    if way.endswith("in parts"):
        config.data.resident_mib = 0.0
    generator, discriminator = build_networks(config)
    tx = optax.sgd(1e-2, momentum=0.5)
    weights = WEIGHTS[losses]
    update = Update(generator, discriminator, tx, tx, latent=network.latent_size, loss=losses or "bce", weights=weights)
    the_mesh = sharding.of_config(config, network.size)
    init = lambda key: init_state(key, generator, discriminator, tx, tx, ema=False, lecam=bool(weights.lecam))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_update", lambda *_: (update, init))
        state = build.fresh_state(config, init, the_mesh)
        before = jax.tree.map(np.asarray, state)
        step = train_step.compile_step(config, update, the_mesh, made_up(network.size, network.channels), 0)
        after, metrics = step(state)
    leaves = jax.tree.leaves(after)
    assert all(len(leaf.sharding.device_set) == data * rows for leaf in leaves)
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    if fsdp:  # most values lie on one device each (small arrays are not worth it)
        assert sum(leaf.size for leaf in split) > 0.9 * sum(leaf.size for leaf in leaves)
        assert all(leaf.addressable_shards[0].data.size == leaf.size // data for leaf in split)
    else:
        assert not split
    return before, jax.tree.map(np.asarray, after), {name: np.asarray(value) for name, value in metrics.items()}


# Those fed otherwise are held to one device that is fed by `resident`, so that all ways in are one result. Where a
# network's batch and steps are alike, it is computed on one device once.
@pytest.mark.parametrize(
    "network, options",
    [
        ("cgan32", dict(data=8, way="tfdata", steps=2)),
        ("cgan32", dict(data=2, rows=2, way="resident in parts", steps=2)),
        ("cgan32", dict(data=8, fsdp=True, steps=2)),
        ("dcgan28", dict(data=8, way="tfdata", steps=2)),
        ("dcgan28", dict(data=4, rows=2, fsdp=True, steps=2)),
        ("dcgan64", dict(data=8, way="resident in parts", steps=2, losses="hinge")),
        ("dcgan64", dict(data=2, rows=4, batch=2)),
        ("dcgan128", dict(data=8)),
        ("dcgan128", dict(data=1, rows=8, batch=2, way="resident in parts")),
        ("dcgan256", dict(data=2, rows=4, batch=2)),
        ("cgan32", dict(data=8, losses="relativistic")),
        ("retina64", dict(data=2, rows=4, batch=2, steps=2, losses="relativistic")),  # branches begin at 0: two steps
        ("dcgan28", dict(data=2, rows=2, batch=2, fsdp=True, losses="wasserstein")),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_a_mesh_computes_what_one_device_does(network, options, monkeypatch):
    """Losses, gradients and statistics, with dropout; BatchNorm is over the global batch and whole images."""
    # In float32 a value within rounding of a ReLU's kink falls to either side, and moves a gradient by per cents.
    dtype, tolerance = "float64", 2e-5
    monkeypatch.setattr(sharding, "LEAST_SPLIT", sharding.LEAST_SPLIT // 64)  # as its arrays are smaller
    wide = NETWORKS[network]  # of its layers a fraction of the channels: convolutions in float64 are slow loops
    width = {} if network.startswith("retina") else dict(width=8)
    generator, discriminator = (functools.partial(module, **width) for module in (wide.generator, wide.discriminator))
    monkeypatch.setitem(NETWORKS, network, dataclasses.replace(wide, generator=generator, discriminator=discriminator))
    before, one, metrics = some_steps(
        network, 1, dtype=dtype, **{name: options[name] for name in ("steps", "batch", "losses") if name in options}
    )
    same_start, several, metrics_of_several = some_steps(network, dtype=dtype, **options)
    assert_same(before, same_start)
    for name, values in metrics.items():
        assert values.shape == (options.get("steps", 1),)
        np.testing.assert_allclose(metrics_of_several[name], values, rtol=tolerance, err_msg=name)
    worst = {}
    for name in ("g", "d"):
        start, a, b = (getattr(state, name) for state in (before, one, several))
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
    the_mesh = sharding.make_mesh(8)
    update, init = build.make_update(config, *build_networks(config))
    state = jit(init, out_shardings=sharding.replicated(the_mesh))(jax.random.key(0))
    train_step.compile_step(config, update, the_mesh, made_up(made.size, made.channels), 0)(state)
    heavy = re.findall(r"= f32\[(\d+)[,\d]*\]\S* (?:convolution|dot|custom-call)\(", texts[0])
    assert "3" in heavy and "24" not in heavy


def test_a_run_moves_between_meshes(config, tmp_path, monkeypatch):
    """Saved on eight devices, resumed with split rows and a split state, on one, and on two."""
    monkeypatch.setattr(sharding, "LEAST_SPLIT", 1)
    whole = train(config, tmp_path / "whole")
    layouts = (8, 1, False, 0.024), (4, 2, True, 0.048), (1, 1, False, 0.072), (2, 1, True, 0.096)
    for data, rows, fsdp, kimg in layouts:
        layout = dict(mesh__data=data, mesh__rows=rows, mesh__fsdp=fsdp)
        state = train(changed(config, total_kimg=kimg, **layout), tmp_path / "moving")
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {data * rows}
        assert fsdp == any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert int(state.step) == 12
    for a, b in zip(jax.tree.leaves(whole.g.params), jax.tree.leaves(state.g.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # Adam's steps are 2e-4


@pytest.mark.parametrize(
    "platform, version, graphed",
    [("cpu", "cpu", False), ("gpu", "PJRT C API\ncuda 13000", True), ("gpu", "rocm 6", False)],
)
def test_on_nvidia_gpus_a_step_is_one_graph(platform, version, graphed):
    """The option is one that this jaxlib knows; elsewhere there is none."""
    device = types.SimpleNamespace(platform=platform, client=types.SimpleNamespace(platform_version=version))
    options = train_step._compiler_options(types.SimpleNamespace(devices=np.array([[device]])))
    assert bool(options) == graphed
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1.0) == 2
    if graphed:
        with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid enum value"):
            jax.jit(lambda x: x + 2, compiler_options={name: "NONSENSE" for name in options})(1.0)


def test_all_devices_is_the_default(config, tmp_path):
    assert sharding.make_mesh().size == len(jax.devices()) == 8
    state = train(changed(config, mesh__data="auto", total_kimg=0.008), tmp_path)
    assert len(state.step.sharding.device_set) == 8


@pytest.mark.parametrize("devices, batch_size", [(8, 12), (-1, 4), (3, 8)])
def test_a_batch_that_does_not_divide_is_refused(config, tmp_path, devices, batch_size):
    with pytest.raises(
        UserError,
        match=f"config.batch_size = {batch_size} is not divisible by {abs(devices) if devices > 0 else 8} devices",
    ):
        train(changed(config, mesh__data=devices, batch_size=batch_size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layout, line",
    [
        (dict(rows=3), "config.mesh.rows = 3: 8 devices are there, which it does not divide"),
        (dict(rows=9), "config.mesh.rows = 9: 8 devices are there; take from 1 to 8"),
        (dict(data=8, rows=2), "config.mesh.data = 8: 8 devices are there, and mesh.rows = 2 takes as many for each"),
        (dict(data=1, rows=5), "config.mesh.rows = 5: an image has 8 rows"),
        (dict(rows=4), "config.mesh.rows = 4: an image has 8 rows, and each device takes as many of them, 4 or more"),
        (dict(rows=0), "config.mesh.rows = 0: must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, tmp_path, layout, line):
    layout = {f"mesh__{name}": value for name, value in layout.items()}
    with pytest.raises(UserError, match=line):
        train(changed(config, **{"mesh__data": "auto"} | layout), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_is_split_over_neighbours(monkeypatch):
    """Whatever order the devices come in: those of one process, one after the other; and JAX's own layout, which fails
    on some TPU slices, is not asked."""
    monkeypatch.setattr(jax, "make_mesh", None)
    laid_out = sharding.make_mesh(4, 2, devices=jax.devices()[::-1]).devices
    assert [[device.id for device in row] for row in laid_out] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_auto_spreads_a_split_that_no_device_holds(config):
    """Whole while it fits one device, in parts while it fits them all, streamed beyond."""
    split, eight = made_up(8, 3), sharding.make_mesh(8)
    # 24 photographs of 192 bytes; in parts 3 of them on a device, and while it is put together all 8 of the batch
    for kib, way, parts in (
        (4.5, "resident", False),
        (4.4, "resident", True),
        (2.1, "resident", True),
        (2, "tfdata", True),
    ):
        asked = changed(config, data__resident_mib=kib / 1024, data__pipeline="auto")
        assert (choose_pipeline(asked, split, eight), is_sharded(asked, split, eight)) == (way, parts)
    assert resident.sharded_bytes(split.images.shape, 8, eight) == 11 * 192
    assert resident.sharded_bytes(split.images.shape, 8, sharding.make_mesh(1, 2)) == (24 + 8) * 96  # rows share it, too
    assert is_sharded(changed(config, data__resident_mib=0.001), split, sharding.make_mesh(1, 2))
    images, grades = resident.put(split, eight, sharded=True)
    assert {shard.data.shape for shard in images.addressable_shards} == {(3, 8, 8, 3)}
    np.testing.assert_array_equal(images, split.images)


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
    (_, after, metrics), (*_, exact) = some_steps(network, 1, dtype="bfloat16"), some_steps(network, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.g, after.d))} == {np.dtype("float32")}
    for name in ("loss_d", "d_real", "d_fake_before"):
        assert metrics[name][0] == pytest.approx(exact[name][0], rel=0.05) and metrics[name][0] != exact[name][0]
