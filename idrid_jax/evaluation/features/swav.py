"""SwAV's ResNet-50 in JAX: 2048 pooled features.

Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020; the network
is He et al., "Deep residual learning", CVPR 2016, section 4.1, with the stride in the 3x3 convolution. Woodland et al.,
"Feature extraction for generative medical imaging evaluation", MICCAI 2024, compare extractors; only SwAV's distances
agree with experts' judgement.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from idrid_jax.evaluation.features import folded, resize

SIZE = 224
FEATURES = 2048
EPSILON = 1e-5
BLOCKS = (3, 4, 6, 3)  # of each stage


def _parameter_names(name):
    norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
    return f"{name}.weight", norm


def _forward(conv, x):
    """[N, 224, 224, 3] -> [N, 7, 7, 2048]."""
    relu = jax.nn.relu
    x = folded.max_pool(relu(conv("conv1", x, 64, 7, 2, 3)), 2, 1)
    for stage, blocks in enumerate(BLOCKS):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            y = relu(conv(f"{name}.conv1", x, width, 1))
            y = relu(conv(f"{name}.conv2", y, width, 3, stride, 1))
            y = conv(f"{name}.conv3", y, 4 * width, 1)
            x = relu(y + (x if block else conv(f"{name}.downsample.0", x, 4 * width, 1, stride)))
    return x


NETWORK = folded.FoldedNetwork(_forward, SIZE, _parameter_names, EPSILON)
parameter_shapes = NETWORK.parameter_shapes
convert = NETWORK.convert


def features(params: dict, images: np.ndarray) -> jax.Array:
    """Pooled features of uint8 images [N, H, W, C], C 1 or 3, resized by Pillow (bilinear): float32 [N, 2048]."""
    return _features(params, resize.pillow(images, SIZE, Image.Resampling.BILINEAR))


@jax.jit
def _features(params, images):
    return jnp.mean(NETWORK.apply(params, resize.imagenet_normalize(images)), axis=(1, 2))
