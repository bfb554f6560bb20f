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
NUM_FROZEN = 5  # stages that fine-tuning leaves as they are
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
NUM_FROZEN_BLOCKS = sum(blocks for blocks, *_ in STAGES[:NUM_FROZEN])
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
    return _last_stages(conv, _first_stages(conv, x))


def _first_stages(conv, x):
    """[N, 224, 224, 3] -> [N, 14, 14, 112]."""
    x = jax.nn.relu6(conv("_conv_stem", x, 32, 3, 2, "SAME"))
    return _stages(conv, x, STAGES[:NUM_FROZEN], 0)


def _last_stages(conv, x):
    """[N, 14, 14, 112] -> [N, 7, 7, 1280]."""
    x = _stages(conv, x, STAGES[NUM_FROZEN:], NUM_FROZEN_BLOCKS)
    return jax.nn.relu6(conv("_conv_head", x, FEATURES, 1))


def _stages(conv, x, stages, block):
    """block: the number of the first block."""
    relu6 = jax.nn.relu6
    for blocks, kernel, stride, expansion, channels in stages:
        for first in [True] + [False] * (blocks - 1):
            name, wide = f"_blocks.{block}", x.shape[-1] * expansion
            y = relu6(conv(f"{name}._expand_conv", x, wide, 1)) if expansion > 1 else x
            y = relu6(conv(f"{name}._depthwise_conv", y, wide, kernel, stride if first else 1, "SAME", True))
            y = conv(f"{name}._project_conv", y, channels, 1)
            x = y if first else x + y  # the first block of every stage changes the number of channels
            block += 1
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
    """Split what `convert` returns into the parameters of the first `NUM_FROZEN` stages and of the last ones."""
    first_blocks = tuple(f"_blocks.{block}." for block in range(NUM_FROZEN_BLOCKS))
    is_first = {name: name == "_conv_stem" or name.startswith(first_blocks) for name in params}
    return tuple({name: params[name] for name in params if is_first[name] == wanted} for wanted in (True, False))


@jax.jit
def first_stages(params: dict, images: jax.Array) -> jax.Array:
    """Map uint8 images [N, H, W, C] to activations, float32 [N, H / 16, W / 16, 112]. params: as `split_params`."""
    return NETWORK.apply(params, normalize(images), _first_stages)


def last_stages(params: dict, activations: jax.Array) -> jax.Array:
    """Map activations, float32 [N, h, w, 112], to pooled features, float32 [N, 1280]. params: as `split_params`."""
    return jnp.mean(NETWORK.apply(params, activations, _last_stages), axis=(1, 2))


def normalize(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, H, W, 3] in [-127 / 128, 1]."""
    x = (images.astype(jnp.float32) - 127) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
