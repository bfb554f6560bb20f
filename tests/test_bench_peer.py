"""The PyTorch side of `bench step`: the same losses as ours on copied weights and inputs, and its process."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from conftest import changed  # noqa: E402
from flax import nnx  # noqa: E402
from peers import capture  # noqa: E402

from idrid_jax import cli  # noqa: E402
from idrid_jax.bench import peer, step, torch_networks, torch_step  # noqa: E402
from idrid_jax.config import default_config  # noqa: E402
from idrid_jax.models import NETWORKS  # noqa: E402
from idrid_jax.models.functional import functional  # noqa: E402
from idrid_jax.training.optimizers import update_ema  # noqa: E402
from idrid_jax.training.state import init_state  # noqa: E402
from idrid_jax.training.update import make_update, update_networks  # noqa: E402

pytestmark = pytest.mark.peer
platform_lowering = True  # XLA's own convolutions are naive loops without optimization, and in float64
BATCH, STEPS = 8, 3
CPU = torch.device("cpu")
NAMES = list(step.BATCH_SIZES)


def make_config(network, **changes):
    config = default_config()
    config.network, config.batch_size = network, BATCH
    return changed(config, **changes)


def without_dropout(module):
    """Disable dropout: the two sides generate different masks."""

    def make(rngs):
        made = module(dtype=jnp.float32, rngs=rngs)
        for _, layer in nnx.iter_modules(made):
            if isinstance(layer, nnx.Dropout):
                layer.rate = 0.0
        return made

    return functional(make)


def their_update(config, state):
    """Return the peer's update with the weights of our state."""
    update = torch_step.Update(torch_step.Options(**step.peer_options(config)), CPU, compiled=False)
    for ours, module in ((state.g, update.generator), (state.d, update.discriminator)):
        copy(ours, module)
    for module in (*update.discriminator.modules(), *update.frozen_discriminator.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return update


def copy(ours, module):
    arrays = capture.by_layer(ours.params) | capture.by_layer(ours.stats)
    torch_networks.copy_arrays(arrays, module)
    theirs = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(arrays) == len(theirs)


def to_peer(images, module):
    """Return uint8 [B, R, R, C] as [B, C, R, R], rotated if the peer's network is."""
    images = images[:, ::-1, ::-1] if module.rotated else images
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).contiguous(memory_format=torch.channels_last)


def our_losses(config):
    """Return losses of D and G [STEPS, 2], the state before and after, and each step's images, grades and z."""
    network = NETWORKS[config.network]
    update = make_update(config, tuple(map(without_dropout, (network.generator, network.discriminator))))
    parts = update.generator, update.discriminator, update.g_optimizer, update.d_optimizer
    first = state = jax.jit(lambda key: init_state(key, *parts, ema=bool(config.ema_kimg)))(jax.random.key(0))
    compiled, rows, batches = jax.jit(functools.partial(update_networks, update)), [], []
    for i in range(STEPS):
        rng, key = np.random.default_rng(i), jax.random.key(i)
        images = rng.integers(0, 256, (BATCH, network.size, network.size, network.channels), np.uint8)
        grades = rng.integers(0, 5, BATCH)
        z = jax.random.normal(jax.random.split(key, 5)[0], (BATCH, network.latent_size))  # as the update draws it
        with jax.default_matmul_precision("highest"):
            state, metrics = compiled(state, images, grades.astype(np.int32), key)
        rows.append([float(metrics["loss_d"]), float(metrics["loss_g"])])
        batches.append((images, grades, np.array(z)))
    return np.array(rows), first, state, batches


def their_losses(update, batches):
    """Return the peer's losses [STEPS, 2]."""
    rows = []
    for images, grades, z in batches:
        losses = update(to_peer(images, update.discriminator), torch.from_numpy(grades), torch.from_numpy(z))
        rows.append([float(loss) for loss in losses])
    return np.array(rows)


def assert_same_statistics(stats, module):
    for (layer, array), a in capture.by_layer(stats).items():
        if array == "mean":  # the running variance is biased here and unbiased there
            theirs = getattr(module.get_submodule(layer), torch_networks.ARRAYS[array]).numpy()
            assert capture.difference(torch_networks.to_torch(a, module.rotated, layer, array), theirs) < 1e-2, layer


@pytest.mark.parametrize(
    ("network", "rate", "bounds"),
    [
        ("dcgan28", 1e-3, (1e-5, 2e-3, 2e-3)),
        ("cgan32", 1e-3, (1e-5, 1e-3, 1e-3)),
        ("dcgan64", 2e-4, (5e-5, 5e-3, 3e-2)),  # Adam turns rounding into whole steps where gradients are near 0, and
        ("dcgan128", 2e-4, (5e-5, 5e-3, 3e-2)),  # these start with more of them
    ],
)
def test_same_losses(network, rate, bounds):
    """Losses of later steps depend on the updates before them."""
    config = make_config(network, optimizer__g_learning_rate=rate, optimizer__d_learning_rate=rate)
    ours, first, last, batches = our_losses(config)
    update = their_update(config, first)
    theirs = their_losses(update, batches)
    for mine, other, bound in zip(ours, theirs, bounds, strict=True):
        np.testing.assert_allclose(mine, other, rtol=bound)
    assert abs(ours[1:] / ours[:-1] - 1).max() > 3 * bounds[-1]  # and they change
    assert_same_statistics(last.g.stats, update.generator)
    assert_same_statistics(last.d.stats, update.discriminator)
    assert_same_statistics(last.d.stats, update.frozen_discriminator)


def test_same_options():
    """Options of the update; the losses differ if the peer omits one of them."""
    options = dict(loss__label_smoothing=0.2, optimizer__clip_norm=0.01, optimizer__b1=0.0, optimizer__b2=0.9)
    options |= dict(optimizer__g_learning_rate=1e-3, optimizer__d_learning_rate=5e-4)
    config, plain = make_config("cgan32", **options), make_config("cgan32")
    ours, first, _, batches = our_losses(config)
    np.testing.assert_allclose(ours, their_losses(their_update(config, first), batches), rtol=1e-3)
    for name in options:
        others = {option: value for option, value in options.items() if option != name}
        without = their_losses(their_update(changed(plain, **others), first), batches)
        assert abs(without / ours - 1).max() > 3e-3, name


def test_same_moving_average():
    """Our moving average of the peer's parameters, step by step."""
    config = make_config("dcgan28", ema_kimg=0.02)
    update = torch_step.Update(torch_step.Options(**step.peer_options(config)), CPU, compiled=False)
    parameters = lambda: [p.detach().numpy().copy() for p in update.generator.parameters()]
    batches, expected = torch_step.Batches(update.options, 16, CPU), parameters()
    for i in range(4):  # young at first, then by the decay
        update(*batches())
        expected = update_ema(expected, parameters(), update.options.ema_decay, jnp.int32(i))
    for mine, theirs in zip(expected, update.ema, strict=True):
        assert capture.difference(mine, theirs) < 1e-6


def test_whole_images_are_flipped():
    config = make_config("dcgan28", data__flip=True)
    update = torch_step.Update(torch_step.Options(**step.peer_options(config)), CPU, compiled=False)
    seen = []
    update.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    update(images, torch.zeros(64, dtype=torch.int64), torch.randn(64, 100))
    real = images.float() / 127.5 - 1
    same = (seen[0] == real).flatten(1).all(1)
    assert (same | (seen[0] == real.flip(3)).flatten(1).all(1)).all() and 16 < same.sum() < 48


@pytest.mark.parametrize("network", NAMES)
def test_same_settings(network):
    """Of every BatchNorm and dropout. PyTorch's running variances are unbiased; no loss depends on them."""
    for ours, theirs in (
        (NETWORKS[network].generator, torch_networks.NETWORKS[network].generator()),
        (NETWORKS[network].discriminator, torch_networks.NETWORKS[network].discriminator()),
    ):
        found = 0
        for path, layer in nnx.iter_modules(ours(dtype=jnp.float32, rngs=nnx.Rngs(0))):
            name = ".".join(map(str, path))
            if isinstance(layer, nnx.BatchNorm):
                peer_layer = theirs.get_submodule(name)
                assert (layer.epsilon, layer.momentum) == pytest.approx((peer_layer.eps, 1 - peer_layer.momentum))
            elif isinstance(layer, nnx.Dropout):
                assert layer.rate == theirs.get_submodule(name).p
            else:
                continue
            found += 1
        kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.Dropout)
        assert found == sum(isinstance(module, kinds) for module in theirs.modules())


def test_the_generator_update_computes_no_gradients_of_the_discriminator():
    """The frozen discriminator shares all arrays with the discriminator and has no gradients."""
    config = make_config("dcgan64")
    update = torch_step.Update(torch_step.Options(**step.peer_options(config)), CPU, compiled=False)
    batches = torch_step.Batches(update.options, 16, CPU)
    update(*batches())
    for (name, p), (_, q) in zip(
        update.discriminator.named_parameters(), update.frozen_discriminator.named_parameters(), strict=True
    ):
        assert p.data_ptr() == q.data_ptr() and p.grad is not None and q.grad is None, name
    for p, q in zip(update.discriminator.buffers(), update.frozen_discriminator.buffers(), strict=True):
        assert p.data_ptr() == q.data_ptr()
    assert update.discriminator.norm[0].num_batches_tracked == 3  # real, fake, and fake again


# Its process


@pytest.fixture
def process():
    with peer.Peer() as started:
        assert started.start(1, "cpu")["threads"] == 1
        yield started


def options(**changes):
    return step.peer_options(make_config("dcgan28", **changes))


def test_rounds_in_a_process(process):
    assert process.make("eager", options(), 16) > 0
    assert process.run("eager", 2) > 0
    process.drop()
    with pytest.raises(peer.PeerError, match="KeyError: 'eager'"):
        process.run("eager", 1)


def test_a_failure_is_one_line(process):
    with pytest.raises(peer.PeerError, match="^KeyError: 'nothing'$"):
        process.make("eager", options() | {"network": "nothing"}, 16)
    with pytest.raises(peer.PeerError) as error:
        process.make("eager", options() | {"batch_size": 2**40}, 16)
    assert "\n" not in str(error.value) and "memory" in str(error.value)
    process.make("eager", options(), 16)  # the process continues


def test_a_device_that_pytorch_lacks(process):
    with pytest.raises(peer.PeerError, match="^RuntimeError: .*PyTorch has no CUDA"):
        process.start(1, "cuda")


def test_a_process_that_is_killed(process):
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(peer.PeerError, match="^ended by SIGKILL, out of memory\\?$"):
        process.run("eager", 1)


def test_a_process_that_fails(monkeypatch):
    monkeypatch.setattr(peer.sys, "executable", "/bin/false")
    with peer.Peer() as started, pytest.raises(peer.PeerError, match="ended with status 1"):
        started.start(1, "cpu")


def test_the_command(monkeypatch, tmp_path, capsys):
    """A row for each side, and the ratio to the better one; a variant that fails is skipped with a note."""
    made = peer.Peer.make

    def make(self, variant, *arguments):
        if variant == "compile":
            raise peer.PeerError("InductorError: no compiler")
        return made(self, variant, *arguments)

    monkeypatch.setattr(peer.Peer, "make", make)
    monkeypatch.setattr(step.timing, "matrix_flops_per_s", lambda dtype: 1e11)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = tmp_path / "mine.py"
    path.write_text(
        "from idrid_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.network, config.batch_size, config.mesh.data = 'dcgan28', 4, 1\n    return config\n"
    )
    assert cli.main(["bench", "step", "--config", str(path), "--peer=torch", "--rounds=3"]) == 0
    out, err = capsys.readouterr()
    ours, theirs, *_ = map(json.loads, out.splitlines()[:2])
    assert (ours["side"], theirs["side"]) == ("idrid_jax", "torch eager")
    assert ours["ratio_to_peer"] == pytest.approx(ours["images_per_s"] / theirs["images_per_s"])
    assert theirs["torch"] == torch.__version__ and theirs["threads"] == ours["threads"]
    assert "torch compile: skipped (InductorError: no compiler)" in err
    assert out.splitlines()[-1].split()[-3:-1] == [f"{theirs['images_per_s']:.1f}", "-"]


def test_compiled_is_the_same_update():
    """Losses of two steps on the same weights and inputs.

    Adam's first step has full length even where a gradient is rounding noise: after it the losses differed by 0.3 %."""
    config = make_config("dcgan64")
    plain, compiled = (
        torch_step.Update(torch_step.Options(**step.peer_options(config)), CPU, compiled=compiled)
        for compiled in (False, True)
    )
    for module, other in ((plain.generator, compiled.generator), (plain.discriminator, compiled.discriminator)):
        other.load_state_dict(module.state_dict())
    batches = torch_step.Batches(plain.options, 16, CPU)
    for batch, rtol in ((batches(), 2e-3), (batches(), 1e-2)):
        ours, theirs = (torch.stack(update(*batch)).numpy() for update in (plain, compiled))
        np.testing.assert_allclose(ours, theirs, rtol=rtol)
