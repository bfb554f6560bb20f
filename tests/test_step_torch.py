"""Our alternating update and the loop of PyTorch's DCGAN tutorial, on the same weights, latents and images.

Losses and probabilities are compared in float32 over two steps of Adam, at full width. Parameters after a step are
compared for narrow networks in float64 (see capture.filled), with SGD and with Adam at a large epsilon: with a small
one an update is the sign of the gradient, which rounding decides near 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
from flax import nnx  # noqa: E402
from peers import capture  # noqa: E402
from torch import nn  # noqa: E402

from idrid_jax.bench import torch_networks  # noqa: E402
from idrid_jax.models import convolution, dcgan  # noqa: E402
from idrid_jax.models.functional import functional  # noqa: E402
from idrid_jax.training.losses import Weights  # noqa: E402
from idrid_jax.training.state import NetworkState, TrainState  # noqa: E402
from idrid_jax.training.update import Update, update_networks  # noqa: E402

pytestmark = pytest.mark.peer
platform_lowering = True  # XLA's own convolutions are naive loops without optimization, and in float64
BATCH, SIZE = 8, 64


def ours(width, dtype, g_tx, d_tx, **options):
    """Return the update, its state, and the two modules with that state; weights are initialized as in the tutorial."""
    networks, states, modules = [], [], []
    for make, tx, seed in ((dcgan.Generator, g_tx, 1), (dcgan.Discriminator, d_tx, 2)):
        make = functools.partial(make, SIZE, width=width)
        module = capture.filled(make, dtype, seed)
        _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        params, stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
        networks.append(functional(lambda rngs, make=make: make(dtype=dtype, rngs=rngs)))
        states.append(NetworkState(params, stats, tx.init(params)))
        modules.append(module)
    update = Update(*networks, g_tx, d_tx, latent=100, **options)
    return (
        update,
        TrainState(jnp.zeros((), jnp.int32), *states, {}, {}, {}),
        modules,
    )


def ours_of(peer, name, array):
    """Return the peer's array in our order of axes."""
    a = getattr(peer.get_submodule(name), torch_networks.ARRAYS[array]).detach().numpy()
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a


def tutorial_step(net_g, net_d, optimizer_g, optimizer_d, real, z, r1=0.0, r2=0.0):
    """Run the body of the tutorial's inner loop and return its metrics under our names.

    r1, r2: weights of the zero-centered gradient penalties, which the tutorial does not have.
    """

    def squared_gradient(output, images):
        (gradient,) = torch.autograd.grad(output.sum(), images, create_graph=True)
        return (gradient**2).flatten(1).sum(1).mean()

    criterion = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(len(real), dtype=real.dtype), torch.zeros(len(real), dtype=real.dtype)
    net_d.zero_grad()
    output = net_d(real.requires_grad_(), None)
    err_d_real, penalty_real = criterion(output, ones), squared_gradient(output, real)
    (err_d_real + r1 / 2 * penalty_real).backward()
    d_x, right = output.sigmoid().mean().item(), (output > 0).sum().item()
    fake = net_g(z, None)
    apart = fake.detach().requires_grad_()
    output = net_d(apart, None)
    err_d_fake, penalty_fake = criterion(output, zeros), squared_gradient(output, apart)
    (err_d_fake + r2 / 2 * penalty_fake).backward()
    d_g_z1, right = output.sigmoid().mean().item(), right + (output <= 0).sum().item()
    norm = lambda net: torch.sqrt(sum((p.grad**2).sum() for p in net.parameters())).item()
    norm_d = norm(net_d)
    optimizer_d.step()
    net_g.zero_grad()
    output = net_d(fake, None)
    err_g = criterion(output, ones)
    err_g.backward()
    norm_g = norm(net_g)
    optimizer_g.step()
    return {
        "loss_d": (err_d_real + err_d_fake).item(),
        "loss_g": err_g.item(),
        "d_real": d_x,
        "d_fake_before": d_g_z1,
        "d_fake_after": output.sigmoid().mean().item(),
        "d_accuracy": right / (2 * len(real)),
        "grad_norm_d": norm_d,
        "grad_norm_g": norm_g,
        "r1": penalty_real.item(),
        "r2": penalty_fake.item(),
    }


def both(width, dtype, steps, tx, optimizer, r1=0.0, r2=0.0):
    """Return (our metrics, PyTorch's) of each step, our last state and PyTorch's networks."""
    update, state, modules = ours(width, dtype, tx(), tx(), weights=Weights(r1, r2))
    torch_type = getattr(torch, dtype)
    net_g, net_d = (
        torch_networks.Generator(SIZE, width).to(torch_type),
        torch_networks.Discriminator(SIZE, width).to(torch_type),
    )
    for module, net in zip(modules, (net_g, net_d), strict=True):
        torch_networks.copy_arrays(capture.arrays(module), net)
    optimizers = optimizer(net_g.parameters()), optimizer(net_d.parameters())
    step = jax.jit(functools.partial(update_networks, update))
    rows = []
    for i in range(steps):
        images = np.random.default_rng(i).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
        key = jax.random.key(i)
        z = np.array(jax.random.normal(jax.random.split(key, 5)[0], (BATCH, 100)))
        # Native convolutions: Adam would turn the rounding of our CPU lowering (see test_convolution) into whole steps
        with jax.default_matmul_precision("highest"), convolution.lowering("native"):
            state, metrics = step(state, images, np.zeros(BATCH, np.int32), key)
        real = torch.from_numpy(np.moveaxis(images, -1, 1) / np.float32(127.5) - 1).to(torch_type)
        theirs = tutorial_step(net_g, net_d, *optimizers, real, torch.from_numpy(z).to(torch_type), r1, r2)
        rows.append(({name: float(value) for name, value in metrics.items()}, theirs))
    return rows, state, (net_g, net_d)


def test_metrics_of_two_steps_of_adam_are_the_tutorial_s():
    rows, *_ = both(
        64,
        "float32",
        2,
        lambda: optax.adam(2e-4, b1=0.5, b2=0.999),
        lambda parameters: torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999)),
    )
    for (metrics, theirs), tolerance in zip(
        rows, (1e-4, 5e-3), strict=True
    ):  # Adam turns rounding into whole steps where gradients are near 0
        for name in ("loss_d", "loss_g", "d_real", "d_fake_before", "d_fake_after", "d_accuracy"):
            assert metrics[name] == pytest.approx(theirs[name], rel=tolerance), name
    metrics, theirs = rows[0]
    assert metrics["d_fake_before"] != pytest.approx(metrics["d_fake_after"], rel=1e-2)  # the update in between is seen


@pytest.mark.parametrize(
    "name, penalties", [("sgd", {}), ("adam", {}), ("sgd", {"r1": 0.7, "r2": 0.3})], ids=["sgd", "adam", "penalties"]
)
def test_parameters_after_two_steps_are_the_tutorial_s(name, penalties):
    """Every parameter of both networks and the running means after two steps in float64 (losses are always float32)."""
    tx, optimizer = {
        "sgd": (lambda: optax.sgd(1e-2), lambda parameters: torch.optim.SGD(parameters, lr=1e-2)),
        # eps as large as the gradients: an update is then not a sign, and depends on m, v and both bias corrections
        "adam": (
            lambda: optax.adam(2e-4, b1=0.5, b2=0.999, eps=1e-3),
            lambda parameters: torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999), eps=1e-3),
        ),
    }[name]
    with jax.enable_x64():
        rows, state, peers = both(8, "float64", 2, tx, optimizer, **penalties)
        _, start, _ = ours(8, "float64", tx(), tx())
    for metrics, theirs in rows:
        assert metrics == pytest.approx({name: theirs[name] for name in metrics}, rel=1e-5)
        assert ("r1" in metrics) == ("r2" in metrics) == bool(penalties)
    for after, before, peer in zip((state.g, state.d), (start.g, start.d), peers, strict=True):
        before = capture.by_layer(before.params)
        for (layer, array), a in capture.by_layer(after.params).items():
            moved, theirs = a - before[layer, array], ours_of(peer, layer, array) - before[layer, array]
            assert capture.difference(moved, theirs) < 1e-5, (layer, array)
        for (layer, array), a in capture.by_layer(after.stats).items():
            if array == "mean":  # the running variance is biased here and unbiased there
                assert capture.difference(a, ours_of(peer, layer, array)) < 1e-5, layer
