"""The number of devices changes no result: one device against eight simulated ones, both pipelines."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, changed, make_config, train

from idrid_jax import models
from idrid_jax.data import cache
from idrid_jax.data.pipeline import choose_pipeline, is_sharded, resident
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.training import optimizers, sharding, train_step
from idrid_jax.training.checkpoint import Checkpoints
from idrid_jax.training.state import fresh_state

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
BATCH = 8
platform_lowering = True  # XLA's own convolutions are naive loops in float64


@functools.cache
def made_up(size, channels):
    """A split of random photographs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, size, size, channels), np.uint8)
    return cache.Split(
        images, rng.integers(0, 5, 24).astype(np.int32), np.zeros(24, np.int32), tuple(map(str, range(24)))
    )


LOSS_FIELDS = {  # together, everything that a step differentiates twice or carries along
    "bce": {},
    "relativistic": {"r1": 0.5, "r2": 0.3, "lecam": 0.3},
    "wasserstein": {"gradient_penalty": 2.0, "feature_matching": 0.1},
    "hinge": {"r1": 0.5, "penalty_every": 2},
}


@functools.cache
def some_steps(
    name, data, *, rows=1, fsdp=False, pipeline="resident", steps=1, batch=BATCH, dtype="float32", loss="bce"
):
    """Return the state before and after `steps` updates with SGD, whose update is the gradient, and their metrics."""
    config = make_config(
        "", name, mesh__data=data, mesh__rows=rows, mesh__fsdp=fsdp, dtype=dtype, batch_size=batch, dispatch_steps=steps
    )
    if name.startswith("retina"):
        config.model.max_channels = 8
    config.data.pipeline = pipeline.removesuffix(" sharded")
    if pipeline.endswith("sharded"):
        config.data.resident_mib = 0.0
    config.loss.name = loss
    config.loss.update(LOSS_FIELDS[loss])
    network = NETWORKS[name]
    mesh = sharding.mesh_from_config(config, network.size)
    with jax.enable_x64(dtype == "float64"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "make_optimizer", lambda *_: optax.sgd(1e-2, momentum=0.5))
        state = fresh_state(config, mesh)
        before = jax.tree.map(np.asarray, state)
        after, metrics = train_step.make_train_step(config, mesh, made_up(network.size, network.channels), 0)(state)
    leaves = jax.tree.leaves(after)
    assert all(len(leaf.sharding.device_set) == data * rows for leaf in leaves)
    sharded = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    if fsdp:  # most values are on one device each; small arrays are replicated
        assert sum(leaf.size for leaf in sharded) > 0.9 * sum(leaf.size for leaf in leaves)
        assert all(leaf.addressable_shards[0].data.size == leaf.size // data for leaf in sharded)
    else:
        assert not sharded
    return before, jax.tree.map(np.asarray, after), {name: np.asarray(value) for name, value in metrics.items()}


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)  # one network of each kind is enough by default


@pytest.mark.parametrize(
    "network, options",
    [
        ("cgan32", dict(data=8, pipeline="tfdata", loss="relativistic")),
        ("dcgan28", dict(data=4, rows=2, fsdp=True, steps=2)),
        slow("cgan32", dict(data=2, rows=2, pipeline="resident sharded", steps=2)),
        slow("dcgan64", dict(data=8, pipeline="resident sharded", steps=2, loss="hinge")),
        slow("dcgan128", dict(data=1, rows=8, batch=2, pipeline="resident sharded")),
        slow("retina32", dict(data=2, rows=4, batch=2, steps=2, loss="relativistic")),  # branches begin at 0: two steps
        slow("dcgan28", dict(data=2, rows=2, batch=2, fsdp=True, loss="wasserstein")),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_a_mesh_computes_what_one_device_does(network, options, monkeypatch):
    """Losses, gradients and statistics, with dropout; BatchNorm is over the global batch and whole images. One device
    uses the resident pipeline, so all pipelines give one result."""
    # In float32 a value within rounding of a ReLU's kink falls to either side and moves a gradient by per cents
    dtype, tolerance = "float64", 2e-5
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", sharding.MIN_SHARDED_SIZE // 64)  # narrow arrays are smaller
    monkeypatch.setitem(NETWORKS, "retina32", models._retina(32))  # retina64 takes a minute
    wide = NETWORKS[network]  # with a fraction of the channels: convolutions in float64 are slow loops
    width = {} if network.startswith("retina") else dict(width=8)
    generator, discriminator = (functools.partial(module, **width) for module in (wide.generator, wide.discriminator))
    monkeypatch.setitem(NETWORKS, network, dataclasses.replace(wide, generator=generator, discriminator=discriminator))
    before, one, metrics = some_steps(
        network, 1, dtype=dtype, **{name: options[name] for name in ("steps", "batch", "loss") if name in options}
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


@pytest.mark.slow  # four runs
def test_a_run_moves_between_meshes(config, tmp_path, monkeypatch):
    """Saved on eight devices, resumed with split rows and a split state, and on one."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
    whole = train(config, tmp_path / "whole")
    layouts = (8, 1, False, 0.032), (4, 2, True, 0.064), (1, 1, False, 0.096)
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
def test_the_option_for_cuda_graphs_is_known_to_jaxlib_and_for_nvidia_alone(platform, version, graphed):
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


@pytest.mark.parametrize("devices, batch_size", [(8, 12), ("auto", 4), (3, 8)])
def test_a_batch_that_does_not_divide_is_refused(config, tmp_path, devices, batch_size):
    with pytest.raises(
        UserError,
        match=f"config.batch_size = {batch_size} is not divisible by {8 if devices == 'auto' else devices} devices",
    ):
        train(changed(config, mesh__data=devices, batch_size=batch_size), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layout, field",
    [
        (dict(rows=3), "mesh.rows = 3"),
        (dict(rows=9), "mesh.rows = 9"),
        (dict(data=8, rows=2), "mesh.data = 8"),
        (dict(data=1, rows=5), "mesh.rows = 5"),
        (dict(rows=4), "mesh.rows = 4"),
        (dict(data=9), "mesh.data = 9"),
        (dict(data=0), "mesh.data = 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, tmp_path, layout, field):
    layout = {f"mesh__{name}": value for name, value in layout.items()}
    with pytest.raises(UserError, match=f"config.{field}"):
        train(changed(config, **{"mesh__data": "auto"} | layout), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_is_split_over_neighbours(monkeypatch):
    """Devices of one process follow each other, whatever their order; jax.make_mesh, which fails on some TPU slices, is
    not used."""
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
    assert (
        resident.sharded_bytes(split.images.shape, 8, sharding.make_mesh(1, 2)) == (24 + 8) * 96
    )  # rows share it, too
    assert is_sharded(changed(config, data__resident_mib=0.001), split, sharding.make_mesh(1, 2))
    images, grades = resident.put(split, eight, sharded=True)
    assert {shard.data.shape for shard in images.addressable_shards} == {(3, 8, 8, 3)}
    np.testing.assert_array_equal(images, split.images)


def test_bfloat16_keeps_parameters_and_optimizers_in_float32(config, tmp_path):
    """In memory and on disk."""
    state = train(changed(config, dtype="bfloat16", ema_kimg=0.05), tmp_path)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")} and all(np.isfinite(leaf).all() for leaf in floats)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(state), state)


@pytest.mark.slow  # test_networks and test_retina compare the networks themselves
@pytest.mark.parametrize("network", ["cgan32", "dcgan28"])
def test_bfloat16_of_the_real_networks(network):
    (_, after, metrics), (*_, exact) = some_steps(network, 1, dtype="bfloat16"), some_steps(network, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.g, after.d))} == {np.dtype("float32")}
    for name in ("loss_d", "d_real", "d_fake_before"):
        assert metrics[name][0] == pytest.approx(exact[name][0], rel=0.05) and metrics[name][0] != exact[name][0]
