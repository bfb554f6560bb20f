"""Times each transposed convolution of the networks, forward and both gradients, beside autodiff of lax's own.

    python -m idrid_jax.bench.convolution

Sides are interleaved; figures are medians in milliseconds.
"""

import functools
import statistics
import time

import jax
from jax import lax

from idrid_jax.models.convolution import conv_input

# name: batch, input side, channels in, channels out, kernel, stride, padding
LAYERS = {
    "dcgan28 up1": (128, 7, 256, 128, 5, 1, (2, 2)),
    "dcgan28 up2": (128, 7, 128, 64, 5, 2, (1, 2)),
    "cgan32 up1": (128, 8, 129, 128, 4, 2, (1, 1)),
    "cgan32 up2": (128, 16, 128, 128, 4, 2, (1, 1)),
    "dcgan64 image": (64, 32, 64, 3, 4, 2, (1, 1)),
    "dcgan128 up2": (32, 4, 512, 256, 4, 2, (1, 1)),
    "dcgan128 up4": (32, 16, 128, 64, 4, 2, (1, 1)),
    "dcgan128 image": (32, 32, 64, 3, 16, 4, (6, 6)),
}
ROUNDS = 7


def dilated(x, w, stride, padding):
    """The transposed convolution as a convolution of a dilated input, w [k, k, O, I], whose gradients are left to
    autodiff."""
    edges = tuple(w.shape[0] - 1 - pixels for pixels in padding)
    return lax.conv_general_dilated(
        x,
        w[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        (edges, edges),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def ours(x, w, stride, padding):
    side = (x.shape[1] - 1) * stride + w.shape[0] - sum(padding)
    return conv_input(x, w, stride, padding, (side, side))


def maps(function, x, w, g):
    """Forward, gradient of the images, gradient of the kernel: compiled, without arguments left."""
    calls = (
        (function, (x, w)),
        (lambda x, w, g: jax.vjp(lambda x: function(x, w), x)[1](g), (x, w, g)),
        (lambda x, w, g: jax.vjp(lambda w: function(x, w), w)[1](g), (x, w, g)),
    )
    return [functools.partial(jax.jit(call), *arguments) for call, arguments in calls]


def milliseconds(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}; ms, lax's own -> ours")
    print(f"{'layer':16}{'forward':>18}{'images gradient':>18}{'kernel gradient':>18}")
    for name, (n, side, inputs, outputs, kernel, stride, padding) in LAYERS.items():
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (n, side, side, inputs))
        w = 0.02 * jax.random.normal(keys[1], (kernel, kernel, outputs, inputs))
        options = dict(stride=stride, padding=padding)
        g = jax.random.normal(keys[2], ours(x, w, **options).shape)
        pairs = list(
            zip(maps(functools.partial(dilated, **options), x, w, g), maps(functools.partial(ours, **options), x, w, g))
        )
        cells = []
        for pair in pairs:
            for call in pair:
                milliseconds(call)  # compiles
            times = [[milliseconds(call) for call in pair] for _ in range(ROUNDS)]
            cells.append("%.1f -> %.1f" % tuple(statistics.median(side) for side in zip(*times)))
        print(f"{name:16}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
