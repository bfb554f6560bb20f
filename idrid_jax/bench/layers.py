"""`idrid-jax bench layers`: where a step's arithmetic goes. Every convolution of the networks, forward and both
gradients, as this platform lowers it beside `lax` alone, with its share of the rate of plain matrix products.

A share above 100 % says that fewer multiplications were needed than a plain convolution has.
"""

import functools

import jax
import jax.numpy as jnp

from idrid_jax import config as config_lib
from idrid_jax.bench import report, timing
from idrid_jax.bench.step import BATCHES
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models.convolution import conv, conv_input, conv_kernel, lowering, out_size

# network: {layer: images' side, channels of images, of features, kernel, stride, padding}. Transposed layers of a
# generator are the adjoints of these: their forward pass is the images' gradient.
LAYERS = {
    "dcgan28": {
        "up1": (7, 128, 256, 5, 1, (2, 2)),
        "up2, down2": (14, 64, 128, 5, 2, (1, 2)),
        "image, down1": (28, 1, 64, 5, 2, (1, 2)),
    },
    "cgan32": {
        "up1": (16, 128, 129, 4, 2, (1, 1)),
        "up2": (32, 128, 128, 4, 2, (1, 1)),
        "image": (32, 128, 3, 8, 1, (3, 4)),
        "down1": (32, 4, 128, 3, 2, (0, 1)),
        "down2": (16, 128, 128, 3, 2, (0, 1)),
    },
    "dcgan64": {
        "image": (64, 3, 64, 4, 2, (1, 1)),
        "up3, down0": (32, 64, 128, 4, 2, (1, 1)),
        "up2, down1": (16, 128, 256, 4, 2, (1, 1)),
        "up1, down2": (8, 256, 512, 4, 2, (1, 1)),
        "up0": (4, 512, 100, 4, 1, (0, 0)),
    },
    "dcgan128": {
        "image": (128, 3, 64, 16, 4, (6, 6)),
        "up3, down0": (32, 64, 128, 4, 2, (1, 1)),
        "up2, down1": (16, 128, 256, 4, 2, (1, 1)),
        "up1, down2": (8, 256, 512, 4, 2, (1, 1)),
        "up0": (4, 512, 100, 4, 1, (0, 0)),
    },
}
MAPS = ("conv", "conv_input", "conv_kernel")  # forward, images' gradient, kernel's gradient


def run(networks: list[str], *, dtype: str = "float32", rounds: int = 5) -> None:
    """Prints a JSON line for every layer and map, and a table. Raises UserError for an unknown network or dtype."""
    for network in networks:
        if network not in LAYERS:
            raise UserError(f"--network {network}: {suggest_name(network, LAYERS)}")
    if dtype not in config_lib.DTYPES:
        raise UserError(f"--dtype {dtype}: {suggest_name(dtype, config_lib.DTYPES)}")
    machine, rate, rows = report.machine(), timing.matrix_rate(dtype), []
    report.note(f"matrix products of {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    for network in networks or LAYERS:
        for layer, geometry in LAYERS[network].items():
            cells = []
            for name, native, ours, flops in _times(BATCHES[network], geometry, dtype, rounds):
                row = {
                    "bench": "layers",
                    "network": network,
                    "layer": layer,
                    "map": name,
                    "dtype": dtype,
                    "native_ms": round(native * 1e3, 3),
                    "ms": round(ours * 1e3, 3),
                    "ratio": round(native / ours, 3),
                    "images_per_s": round(BATCHES[network] / ours, 1),
                    "share_of_matrix_rate": round(flops / ours / rate, 3),
                }
                report.emit(row | machine)
                cells.append(f"{native * 1e3:.1f} -> {ours * 1e3:.1f} ms, {flops / ours / rate:.0%}")
            rows.append((f"{network} {layer}", f"{flops / 1e9:.2f}", *cells))
    print("\n" + report.table(("layer", "GFLOP", *MAPS), rows))


def _times(batch, geometry, dtype, rounds):
    """(map, lax's own seconds, ours, FLOPs of a plain convolution) for each of the three."""
    side, inputs, outputs, kernel, stride, padding = geometry
    features = out_size(side, kernel, stride, padding)
    shapes = (batch, side, side, inputs), (kernel, kernel, inputs, outputs), (batch, features, features, outputs)
    x, w, g = (
        jax.random.normal(key, shape).astype(jnp.dtype(dtype))
        for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes)
    )
    flops = 2 * batch * features**2 * kernel**2 * inputs * outputs
    maps = {
        "conv": (lambda a, b: conv(a, b, stride, padding), x, w),
        "conv_input": (lambda a, b: conv_input(a, b, stride, padding, (side, side)), g, w),
        "conv_kernel": (lambda a, b: conv_kernel(a, b, stride, padding, kernel), x, g),
    }
    for name, (function, a, b) in maps.items():
        with lowering("native"):
            native = jax.jit(function).lower(a, b).compile()
        # another function object: a traced one is remembered as it was
        ours = jax.jit(lambda a, b, function=function: function(a, b)).lower(a, b).compile()
        times = timing.interleaved(
            {"native": functools.partial(native, a, b), "ours": functools.partial(ours, a, b)}, rounds
        )
        yield name, times["native"].median, times["ours"].median, flops
