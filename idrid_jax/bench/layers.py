"""`idrid-jax bench layers`: every convolution of the networks, forward and both gradients.

Each is timed with this platform's lowering and with XLA's native one, and compared with the rate of matrix products. A
share above 100 % means that the lowering needs fewer multiplications than a plain convolution.
"""

import functools

import jax
import jax.numpy as jnp

from idrid_jax import config as config_lib
from idrid_jax.bench import report, timing
from idrid_jax.bench.step import BATCH_SIZES
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models.convolution import conv, conv_input, conv_kernel, lowering, out_size

# network -> layer -> (image size, image channels, feature channels, kernel size, stride, padding). A transposed layer
# of a
# generator is the adjoint of the one listed: its forward pass is the gradient with respect to the image.
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
OPERATIONS = ("conv", "conv_input", "conv_kernel")  # forward, gradient of the image, gradient of the kernel


def run(networks: list[str], *, dtype: str = "float32", rounds: int = 5) -> None:
    """Print a JSON line for every layer and operation, and a table. Raises UserError for an unknown network or dtype.

    networks: keys of LAYERS; empty for all.
    """
    for network in networks:
        if network not in LAYERS:
            raise UserError(f"--network {network}: {suggest_name(network, LAYERS)}")
    if dtype not in config_lib.DTYPES:
        raise UserError(f"--dtype {dtype}: {suggest_name(dtype, config_lib.DTYPES)}")
    machine, rate, rows = report.describe_machine(), timing.matrix_flops_per_s(dtype), []
    report.log(f"matrix products of {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    for network in networks or LAYERS:
        batch_size = BATCH_SIZES[network]
        for layer, geometry in LAYERS[network].items():
            cells = []
            for operation, native, lowered, flops in _times(batch_size, geometry, dtype, rounds):
                row = {
                    "benchmark": "layers",
                    "network": network,
                    "layer": layer,
                    "operation": operation,
                    "batch_size": batch_size,
                    "dtype": dtype,
                    "native_ms": round(native * 1e3, 3),
                    "ms": round(lowered * 1e3, 3),
                    "speedup": round(native / lowered, 3),
                    "images_per_s": round(batch_size / lowered, 1),
                    "matrix_rate_fraction": round(flops / lowered / rate, 3),
                }
                report.print_row(row | machine)
                cells.append(f"{native * 1e3:.1f} -> {lowered * 1e3:.1f} ms, {flops / lowered / rate:.0%}")
            rows.append((f"{network} {layer}", f"{flops / 1e9:.2f}", *cells))
    print("\n" + report.format_table(("layer", "GFLOP", *OPERATIONS), rows))


def _times(batch_size, geometry, dtype, rounds):
    """Yield (operation, seconds of the native lowering, of this platform's, FLOPs of a plain convolution)."""
    side, inputs, outputs, kernel, stride, padding = geometry
    features = out_size(side, kernel, stride, padding)
    shapes = (
        (batch_size, side, side, inputs),
        (kernel, kernel, inputs, outputs),
        (batch_size, features, features, outputs),
    )
    x, w, g = (
        jax.random.normal(key, shape).astype(jnp.dtype(dtype))
        for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes)
    )
    flops = 2 * batch_size * features**2 * kernel**2 * inputs * outputs
    operations = {
        "conv": (lambda a, b: conv(a, b, stride, padding), x, w),
        "conv_input": (lambda a, b: conv_input(a, b, stride, padding, (side, side)), g, w),
        "conv_kernel": (lambda a, b: conv_kernel(a, b, stride, padding, kernel), x, g),
    }
    for name, (function, a, b) in operations.items():
        with lowering("native"):
            native = jax.jit(function).lower(a, b).compile()
        # Wrapped in another function: JAX would reuse the trace of the first one
        lowered = jax.jit(lambda a, b, function=function: function(a, b)).lower(a, b).compile()
        sides = {"native": functools.partial(native, a, b), "lowered": functools.partial(lowered, a, b)}
        times = timing.time_interleaved(sides, rounds)
        yield name, times["native"].median, times["lowered"].median, flops
