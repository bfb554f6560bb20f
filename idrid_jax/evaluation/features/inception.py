"""Inception-v3 of the Frechet Inception distance (the graph of 5 December 2015) in JAX: 2048 pooled features.

Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, section 6; Heusel et al., "GANs trained by a two
time-scale update rule", NeurIPS 2017, section 4 (the pooled features). Its mean pools do not count padding and its last
block pools by the maximum; torchvision's network differs in both, and in its weights.
"""

import jax
import jax.numpy as jnp

from idrid_jax.evaluation.features import folded, resize

SIZE = 299
FEATURES = 2048
CLASSES = 1008  # of the classifier in the file, which features do not need
EPSILON = 1e-3
ROW, COLUMN = (1, 7), (7, 1)  # kernels
ROW_PADDING, COLUMN_PADDING = (0, 3), (3, 0)


def _parameter_names(name):
    return f"{name}.conv.weight", f"{name}.bn"


def _forward(conv, x):
    """[N, 299, 299, 3] -> activations after the stem's two pools, block 6e and block 7c."""
    x = _chain(conv, "Conv2d_", x, ("1a_3x3", 32, 3, 2), ("2a_3x3", 32, 3), ("2b_3x3", 64, 3, 1, 1))
    first = x = folded.max_pool(x, 2)
    x = _chain(conv, "Conv2d_", x, ("3b_1x1", 80, 1), ("4a_3x3", 192, 3))
    second = x = folded.max_pool(x, 2)
    for letter, pool_channels in zip("bcd", (32, 64, 64)):
        x = _block_a(conv, f"Mixed_5{letter}", x, pool_channels)
    x = _block_b(conv, "Mixed_6a", x)
    for letter, channels in zip("bcde", (128, 160, 160, 192)):
        x = _block_c(conv, f"Mixed_6{letter}", x, channels)
    third = x
    x = _block_d(conv, "Mixed_7a", x)
    x = _block_e(conv, "Mixed_7b", x, folded.mean_pool(x))
    x = _block_e(conv, "Mixed_7c", x, folded.max_pool(x, 1, 1))
    return first, second, third, x


def _unit(conv, name, x, channels, kernel, stride=1, padding=0):
    return jax.nn.relu(conv(name, x, channels, kernel, stride, padding))


def _chain(conv, name, x, *layers):
    for suffix, *layer in layers:
        x = _unit(conv, f"{name}{suffix}", x, *layer)
    return x


def _join(*branches):
    return jnp.concatenate(branches, axis=-1)


def _block_a(conv, name, x, pool_channels):
    return _join(
        _unit(conv, f"{name}.branch1x1", x, 64, 1),
        _chain(conv, f"{name}.branch5x5", x, ("_1", 48, 1), ("_2", 64, 5, 1, 2)),
        _chain(conv, f"{name}.branch3x3dbl", x, ("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 1, 1)),
        _unit(conv, f"{name}.branch_pool", folded.mean_pool(x), pool_channels, 1),
    )


def _block_b(conv, name, x):
    return _join(
        _unit(conv, f"{name}.branch3x3", x, 384, 3, 2),
        _chain(conv, f"{name}.branch3x3dbl", x, ("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 2)),
        folded.max_pool(x, 2),
    )


def _block_c(conv, name, x, channels):
    row, column = (channels, ROW, 1, ROW_PADDING), (channels, COLUMN, 1, COLUMN_PADDING)
    last_row, last_column = (192, *row[1:]), (192, *column[1:])
    reduce = ("_1", channels, 1)
    long = (reduce, ("_2", *column), ("_3", *row), ("_4", *column), ("_5", *last_row))
    return _join(
        _unit(conv, f"{name}.branch1x1", x, 192, 1),
        _chain(conv, f"{name}.branch7x7", x, reduce, ("_2", *row), ("_3", *last_column)),
        _chain(conv, f"{name}.branch7x7dbl", x, *long),
        _unit(conv, f"{name}.branch_pool", folded.mean_pool(x), 192, 1),
    )


def _block_d(conv, name, x):
    row, column = (192, ROW, 1, ROW_PADDING), (192, COLUMN, 1, COLUMN_PADDING)
    return _join(
        _chain(conv, f"{name}.branch3x3", x, ("_1", 192, 1), ("_2", 320, 3, 2)),
        _chain(conv, f"{name}.branch7x7x3", x, ("_1", 192, 1), ("_2", *row), ("_3", *column), ("_4", 192, 3, 2)),
        folded.max_pool(x, 2),
    )


def _block_e(conv, name, x, pooled):
    single = _unit(conv, f"{name}.branch3x3_1", x, 384, 1)
    double = _chain(conv, f"{name}.branch3x3dbl", x, ("_1", 448, 1), ("_2", 384, 3, 1, 1))
    return _join(
        _unit(conv, f"{name}.branch1x1", x, 320, 1),
        _split(conv, f"{name}.branch3x3_2", single),
        _split(conv, f"{name}.branch3x3dbl_3", double),
        _unit(conv, f"{name}.branch_pool", pooled, 192, 1),
    )


def _split(conv, name, x):
    return _join(
        _unit(conv, f"{name}a", x, 384, (1, 3), 1, (0, 1)),
        _unit(conv, f"{name}b", x, 384, (3, 1), 1, (1, 0)),
    )


NETWORK = folded.FoldedNetwork(_forward, SIZE, _parameter_names, EPSILON)
convert = NETWORK.convert


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter in the file of weights."""
    return NETWORK.parameter_shapes() | {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}


@jax.jit
def stages(params: dict, images: jax.Array) -> list[jax.Array]:
    """Means over pixels at four depths of uint8 images [N, H, W, C], C 1 or 3: float32 [N, D], D 64, 192, 768, 2048.

    Images are resized as the original graph does it.
    """
    x = resize.tf1_bilinear(images.astype(jnp.float32), SIZE)
    x = jnp.broadcast_to((x - 128) / 128, (*x.shape[:3], 3))
    return [jnp.mean(stage, axis=(1, 2)) for stage in NETWORK.apply(params, x)]


def features(params: dict, images: jax.Array) -> jax.Array:
    """Pooled features of uint8 images [N, H, W, C], C 1 or 3: float32 [N, 2048]."""
    return stages(params, images)[-1]
