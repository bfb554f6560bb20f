"""dcgan64 and dcgan128 against the same in PyTorch, on copied weights, layer by layer; `conv` against PyTorch's."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from peers import capture  # noqa: E402

from idrid_jax.bench import torch_networks  # noqa: E402
from idrid_jax.models import convolution, dcgan  # noqa: E402

pytestmark = pytest.mark.peer
platform_lowering = True  # XLA's own convolutions are naive loops without optimization, and in float64

# Shares of the largest value. Gradients are compared in float64 alone: see capture.filled.
TOLERANCES = {"float32": 5e-5, "float64": 1e-12}
WIDTHS = {"float32": 64, "float64": 16}  # the networks as they are, and narrow ones for time's sake
BATCH = 4


def tensor(a):
    return torch.from_numpy(np.array(a))


def nchw(a):
    """NHWC -> NCHW."""
    return tensor(np.moveaxis(a, -1, 1))


def nhwc(t):
    """NCHW -> NHWC; [B, C], of one pixel, -> [B, 1, 1, C]."""
    a = np.moveaxis(t.detach().numpy(), 1, -1)
    return a[:, None, None] if a.ndim == 2 else a


def weight(a):
    """[k, k, I, O] -> [O, I, k, k]; a transposed convolution's [k, k, O, I] -> [I, O, k, k]; vectors stay."""
    return tensor(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a)


def kernel(t):
    """The way back."""
    a = t.detach().numpy()
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a


def layers(peer):
    """The peer's layers that hold arrays, by name, which is ours."""
    return {name: layer for name, layer in peer.named_modules() if layer._parameters}


def copy(arrays, peer):
    """Our arrays {(layer, array): ...} into the peer: all of ours, and all of theirs."""
    torch_networks.copy_arrays(arrays, peer)
    theirs = [name for name in peer.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(arrays) == len(theirs)


def run(peer, x, cotangent):
    """-> the output, and (input, output) of every layer with arrays. Copies: the activations work in place."""
    calls = {}

    def keep(name, layer, inputs, output):
        calls[name] = inputs[0].detach().clone(), output.detach().clone()

    hooks = [layer.register_forward_hook(functools.partial(keep, name)) for name, layer in layers(peer).items()]
    y = peer(x, None)
    (y * cotangent).sum().backward()
    for hook in hooks:
        hook.remove()
    return y.detach(), calls


def generators(size, dtype):
    """Ours, its input and the output's cotangent; theirs, and the same two as it takes them."""
    rng = np.random.default_rng(size)
    z = rng.standard_normal((BATCH, 100)).astype(dtype)
    cotangent = rng.standard_normal((BATCH, size, size, 3)).astype(dtype)
    ours = capture.filled(functools.partial(dcgan.Generator, size, width=WIDTHS[dtype]), dtype, seed=size)
    theirs = torch_networks.Generator(size, WIDTHS[dtype])
    return ours, z, cotangent, theirs, tensor(z), nchw(cotangent)


def discriminators(size, dtype):
    """The same of the discriminators."""
    rng = np.random.default_rng(size + 1)
    images = rng.uniform(-1, 1, (BATCH, size, size, 3)).astype(dtype)
    cotangent = rng.standard_normal(BATCH).astype(dtype)
    ours = capture.filled(functools.partial(dcgan.Discriminator, size, width=WIDTHS[dtype]), dtype, seed=size + 1)
    theirs = torch_networks.Discriminator(size, WIDTHS[dtype])
    return ours, images, cotangent, theirs, nchw(images), tensor(cotangent)


@pytest.mark.parametrize("size, dtype", [(64, "float64"), (128, "float64"), (128, "float32")])
@pytest.mark.parametrize("pair", [generators, discriminators])
def test_layer_by_layer(pair, size, dtype):
    """Every value between the layers, every gradient, the statistics after it, and the output in eval mode."""
    with jax.enable_x64(dtype == "float64"):
        differences = compare(*pair(size, dtype), gradients=dtype == "float64")
    print("largest:", *max(differences.items(), key=lambda item: item[1]))
    assert not {what: d for what, d in differences.items() if not d < TOLERANCES[dtype]}


def compare(module, x, cotangent, peer, their_x, their_cotangent, *, gradients):
    """-> what was compared: the difference, as a share of the largest value."""
    ours = capture.run(module, x, None, cotangent if gradients else None)
    before = capture.arrays(module)
    peer.to(their_x.dtype)
    copy(before, peer)
    their_x.requires_grad_()
    output, calls = run(peer.train(), their_x, their_cotangent)

    differences = {"output": capture.difference(ours.output, nhwc(output) if output.ndim == 4 else output)}
    assert {call.name for call in ours.calls} == set(calls)
    for call in ours.calls:
        entered, left = calls[call.name]
        differences[call.name, "input"] = capture.difference(call.input, nhwc(entered))
        differences[call.name, "output"] = capture.difference(call.output, nhwc(left))
    if gradients:
        for (name, array), gradient in ours.gradients.items():
            theirs = getattr(peer.get_submodule(name), torch_networks.ARRAYS[array]).grad
            differences[name, array, "gradient"] = capture.difference(gradient, kernel(theirs))
        assert len(ours.gradients) == len(list(peer.parameters()))
        differences["input's gradient"] = capture.difference(ours.input_gradient, nhwc(their_x.grad).reshape(x.shape))

    after = capture.arrays(ours.module)
    for call in ours.calls:
        if (call.name, "mean") in after:
            layer, n = peer.get_submodule(call.name), call.input.size // call.input.shape[-1]
            old, new = before[call.name, "var"], after[call.name, "var"]
            unbiased = 0.9 * old + (new - 0.9 * old) * n / (n - 1)  # PyTorch keeps the unbiased variance; we do not
            differences[call.name, "mean"] = capture.difference(after[call.name, "mean"], layer.running_mean)
            differences[call.name, "var"] = capture.difference(unbiased, layer.running_var)

    copy(after, peer)
    with torch.no_grad():
        output = peer.eval()(their_x, None)
    differences["output in eval mode"] = capture.difference(
        capture.evaluate(ours.module, x), nhwc(output) if output.ndim == 4 else output
    )
    return differences


# image rows, kernel, stride, padding, channels in and out: the layers of both sizes, and others.
LAYERS = [
    (64, 4, 2, 1, 3, 8),
    (128, 16, 4, 6, 3, 8),
    (32, 4, 2, 1, 8, 16),
    (4, 4, 1, 0, 16, 1),
    (4, 4, 1, 0, 32, 100),
    (15, 5, 3, 2, 4, 3),
    (13, 3, 2, 0, 2, 5),
]


@pytest.mark.parametrize("rows, k, stride, padding, channels, features", LAYERS)
def test_convolutions(rows, k, stride, padding, channels, features):
    """`conv` is conv2d and `conv_input` is conv_transpose2d, with both gradients."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((2, rows, rows, channels), np.float32)
    w = rng.standard_normal((k, k, channels, features), np.float32)
    out = convolution.out_size(rows, k, stride, (padding, padding))
    g = rng.standard_normal((2, out, out, features), np.float32)
    extra = (rows + 2 * padding - k) % stride  # rows at the end that no kernel position reached

    @jax.jit
    def ours(x, w, g):
        with jax.default_matmul_precision("highest"):
            y, pull = jax.vjp(lambda x, w: convolution.conv(x, w, stride, (padding, padding)), x, w)
            back, pull_back = jax.vjp(
                lambda g, w: convolution.conv_input(g, w, stride, (padding, padding), (rows, rows)), g, w
            )
            return y, *pull(g), back, *pull_back(x)

    tx, tw, tg = (t.requires_grad_() for t in (nchw(x), weight(w), nchw(g)))
    y = torch.nn.functional.conv2d(tx, tw, stride=stride, padding=padding)
    back = torch.nn.functional.conv_transpose2d(tg, tw, stride=stride, padding=padding, output_padding=extra)
    gx, gw = torch.autograd.grad(y, (tx, tw), tg.detach())
    gg, back_gw = torch.autograd.grad(back, (tg, tw), tx.detach())
    theirs = nhwc(y), nhwc(gx), kernel(gw), nhwc(back), nhwc(gg), kernel(back_gw)
    for a, b in zip(ours(x, w, g), theirs, strict=True):
        assert capture.difference(a, b) < 1e-5
