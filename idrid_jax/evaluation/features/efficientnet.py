"""EfficientNet-Lite0 in JAX: 1280 pooled features.

Tan and Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", ICML 2019, table 1, in the form
for small devices (TensorFlow, "EfficientNet-Lite", 2020): no squeeze-and-excitation, ReLU6 in place of swish, a stem
and a head that do not scale. Its ImageNet weights are an installable package, see `pretrained`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from idrid_jax.evaluation.features import folded, resize

SIZE = 224
FEATURES = 1280
EPSILON = 1e-3
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BLOCKS = [
    (kernel, stride if number == 0 else 1, expansion, channels)
    for blocks, kernel, stride, expansion, channels in STAGES
    for number in range(blocks)
]
NUM_FROZEN = 12  # blocks that fine-tuning leaves as they are; the other four see images at a 32nd of their size
NORMS = {
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
}


def _parameter_names(name):
    block, _, layer = name.rpartition(".")
    return f"{name}.weight", f"{block}.{NORMS[layer]}".lstrip(".")


def _forward(conv, x):
    """[N, 224, 224, 3] -> [N, 7, 7, 1280]."""
    return _last_blocks(conv, _first_blocks(conv, x))


def _first_blocks(conv, x):
    """[N, 224, 224, 3] -> [N, 7, 7, 192]."""
    x = jax.nn.relu6(conv("_conv_stem", x, 32, 3, 2, "SAME"))
    return _blocks(conv, x, range(NUM_FROZEN))


def _last_blocks(conv, x):
    """[N, 7, 7, 192] -> [N, 7, 7, 1280]."""
    x = _blocks(conv, x, range(NUM_FROZEN, len(BLOCKS)))
    return jax.nn.relu6(conv("_conv_head", x, FEATURES, 1))


def _blocks(conv, x, numbers):
    relu6 = jax.nn.relu6
    for number in numbers:
        kernel, stride, expansion, channels = BLOCKS[number]
        name, wide = f"_blocks.{number}", x.shape[-1] * expansion
        y = relu6(conv(f"{name}._expand_conv", x, wide, 1)) if expansion > 1 else x
        y = relu6(conv(f"{name}._depthwise_conv", y, wide, kernel, stride, "SAME", True))
        y = conv(f"{name}._project_conv", y, channels, 1)
        x = x + y if x.shape == y.shape else y
    return x


NETWORK = folded.FoldedNetwork(_forward, SIZE, _parameter_names, EPSILON)
parameter_shapes = NETWORK.parameter_shapes
convert = NETWORK.convert


def features(params: dict, images: np.ndarray) -> jax.Array:
    """Pooled features of uint8 images [N, H, W, C], C 1 or 3, resized by Pillow (bicubic): float32 [N, 1280]."""
    return _features(params, resize.pillow(images, SIZE, Image.Resampling.BICUBIC))


@jax.jit
def _features(params, images):
    return jnp.mean(NETWORK.apply(params, normalize(images)), axis=(1, 2))


def features_at(size: int, params: dict, images: np.ndarray) -> jax.Array:
    """Mean and maximum over the positions of the last map, for images of `size` pixels: float32 [N, 2560].

    The network is convolutional, so it accepts sizes other than the 224 pixels of its training. At a larger size a
    small lesion, such as a microaneurysm, still has pixels of its own; the maximum keeps a response that only one
    position has, which the mean dilutes. Images are uint8 [N, H, W, C], C 1 or 3, resized by Pillow (bicubic).
    """
    return _mean_and_max(params, resize.pillow(images, size, Image.Resampling.BICUBIC))


@jax.jit
def _mean_and_max(params, images):
    x = NETWORK.apply(params, normalize(images))
    return jnp.concatenate([jnp.mean(x, axis=(1, 2)), jnp.max(x, axis=(1, 2))], axis=-1)


def split_params(params: dict) -> tuple[dict, dict]:
    """Split what `convert` returns into the parameters of the first `NUM_FROZEN` blocks and of the last ones."""
    first_names = ("_conv_stem", *(f"_blocks.{number}." for number in range(NUM_FROZEN)))
    first = {name: value for name, value in params.items() if name.startswith(first_names)}
    return first, {name: value for name, value in params.items() if name not in first}


@jax.jit
def first_blocks(params: dict, images: jax.Array) -> jax.Array:
    """Map uint8 images [N, H, W, C] to activations, float32 [N, H / 32, W / 32, 192]. params: as `split_params`."""
    return NETWORK.apply(params, normalize(images), _first_blocks)


def last_blocks(params: dict, activations: jax.Array) -> jax.Array:
    """Map activations, float32 [N, h, w, 192], to pooled features, float32 [N, 1280]. params: as `split_params`."""
    return jnp.mean(NETWORK.apply(params, activations, _last_blocks), axis=(1, 2))


def normalize(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, H, W, 3] in [-127 / 128, 1]."""
    x = (images.astype(jnp.float32) - 127) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
