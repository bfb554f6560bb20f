"""SwAV's ResNet-50 in JAX: 2048 pooled features.

Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020; the network
is He et al., "Deep residual learning", CVPR 2016, section 4.1, with the stride in the 3x3 convolution. Woodland
et al., "Feature extraction for generative medical imaging evaluation", MICCAI 2024, find its distances, alone of those
they compare, to go with experts' judgement.
"""

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.evaluation.features import folded, resize

SIZE = 224
FEATURES = 2048
EPSILON = 1e-5
BLOCKS = (3, 4, 6, 3)


def _names(name):
    norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
    return f"{name}.weight", norm


def _network(conv, x):
    """[N, 224, 224, 3] -> what each of the four stages gives; the last is [N, 7, 7, 2048]."""
    relu = jax.nn.relu
    x = folded.max_pool(relu(conv("conv1", x, 64, 7, 2, 3)), 2, 1)
    found = []
    for stage, count in enumerate(BLOCKS):
        width = 64 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            y = relu(conv(f"{name}.conv1", x, width, 1))
            y = relu(conv(f"{name}.conv2", y, width, 3, stride, 1))
            y = conv(f"{name}.conv3", y, 4 * width, 1)
            x = relu(y + (x if block else conv(f"{name}.downsample.0", x, 4 * width, 1, stride)))
        found.append(x)
    return found


NETWORK = folded.Convolutional(_network, SIZE, _names, EPSILON)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name, without the prefix "module.", and shape of all parameters that the file of weights must have."""
    return NETWORK.shapes()


def parameters(state: dict[str, np.ndarray]) -> dict:
    """What `features` takes, from a file's parameters, whose shapes are those of `shapes`."""
    return NETWORK.parameters(state)


def prepared(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 (repeated) or 3 -> float32 [N, 224, 224, 3], by Pillow's bilinear resize."""
    return resize.imagenet_normal(resize.pil(images.astype(jnp.float32), SIZE, "bilinear"))


@jax.jit
def stages(params: dict, images: jax.Array) -> list[jax.Array]:
    """uint8 [N, H, W, C] -> means over pixels after each stage: float32 [N, 256], [N, 512], [N, 1024], [N, 2048]."""
    return [jnp.mean(x, axis=(1, 2)) for x in NETWORK.apply(params, prepared(images))]


def features(params: dict, images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, 2048], the pooled features."""
    return stages(params, images)[-1]
