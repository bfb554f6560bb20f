"""torchvision's VGG19 in JAX: the 4096 activations before its last layer.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1, column
E. Gupta et al. (2019) grade retinopathy from a pretrained VGG19's features by several classifiers (the thesis, section
2.5.3). Images are resized to 224 pixels by Pillow (bilinear, as torchvision does) without its crop of the center,
because lesions lie near the border, too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from idrid_jax.evaluation.features import resize

SIZE = 224
FEATURES = 4096
STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))  # convolutions and channels before each pool
GRID = SIZE // 2 ** len(STAGES)  # side of the last map


def _layer_names():
    """Return the names of the convolutions by stage: ReLUs and pools also count in torchvision's numbers."""
    stages, number = [], 0
    for convolutions, _ in STAGES:
        stages.append([f"features.{number + 2 * i}" for i in range(convolutions)])
        number += 2 * convolutions + 1
    return stages


CONVOLUTIONS = _layer_names()
DENSE = ("classifier.0", "classifier.3")


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter that features need; kernels are [out, in, rows, columns]."""
    shapes, inputs = {}, 3
    for names, (_, channels) in zip(CONVOLUTIONS, STAGES):
        for name in names:
            shapes |= {f"{name}.weight": (channels, inputs, 3, 3), f"{name}.bias": (channels,)}
            inputs = channels
    for name, wide in zip(DENSE, (inputs * GRID**2, FEATURES)):
        shapes |= {f"{name}.weight": (FEATURES, wide), f"{name}.bias": (FEATURES,)}
    return shapes


def convert(state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Convert a file's parameters: {layer: (kernel, bias)}, float32, kernels with inputs before outputs."""
    state = {name: np.asarray(value, np.float32) for name, value in state.items()}
    params = {}
    for name in [name for stage in CONVOLUTIONS for name in stage]:
        params[name] = state[f"{name}.weight"].transpose(2, 3, 1, 0), state[f"{name}.bias"]
    first, second = DENSE
    channels = STAGES[-1][1]
    kernel = state[f"{first}.weight"].reshape(FEATURES, channels, GRID, GRID)  # PyTorch flattens channels first
    params[first] = kernel.transpose(2, 3, 1, 0).reshape(-1, FEATURES), state[f"{first}.bias"]
    params[second] = state[f"{second}.weight"].T, state[f"{second}.bias"]
    return params


def features(params: dict, images: np.ndarray) -> jax.Array:
    """Activations after the second dense layer's ReLU, of uint8 images [N, H, W, C], C 1 or 3: float32 [N, 4096]."""
    return _features(params, resize.pillow(images, SIZE, Image.Resampling.BILINEAR))


@jax.jit
def _features(params, images):
    relu, x = jax.nn.relu, resize.imagenet_normalize(images)
    for names in CONVOLUTIONS:
        for name in names:
            kernel, bias = params[name]
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST
            )
            x = relu(x + bias)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(len(x), -1)
    for name in DENSE:
        kernel, bias = params[name]
        x = relu(jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST) + bias)
    return x
