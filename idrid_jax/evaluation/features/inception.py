"""InceptionV3 as the Frechet Inception distance has it: the graph of 5 December 2015, in JAX.

Szegedy et al., "Rethinking the Inception architecture", CVPR 2016, section 6; Heusel et al., "GANs trained by a two
time-scale update rule", NeurIPS 2017, section 4 (the pooled features). Its average pools leave the padding out, and the
last block pools by the maximum: both differ from torchvision's network, whose weights are others too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from idrid_jax.evaluation.features import folded, resize

SIZE = 299
FEATURES = 2048
CLASSES = 1008  # of the classifier in the file, which features do not need
EPSILON = 1e-3


def _names(name):
    return f"{name}.conv.weight", f"{name}.bn"


def _network(conv, x):
    """[N, 299, 299, 3] -> what is known of each image after the stem's two pools, block 6e and block 7c."""

    def chain(name, x, *layers):
        for suffix, *layer in layers:
            x = unit(f"{name}{suffix}", x, *layer)
        return x

    def unit(name, x, out, kernel, stride=1, padding=0):
        return jax.nn.relu(conv(name, x, out, kernel, stride, padding))

    def join(*branches):
        return jnp.concatenate(branches, axis=-1)

    row, column = (1, 7), (7, 1)
    by_row, by_column = (0, 3), (3, 0)

    def block_a(name, x, pool):
        return join(
            unit(f"{name}.branch1x1", x, 64, 1),
            chain(f"{name}.branch5x5", x, ("_1", 48, 1), ("_2", 64, 5, 1, 2)),
            chain(f"{name}.branch3x3dbl", x, ("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 1, 1)),
            unit(f"{name}.branch_pool", folded.mean_pool(x), pool, 1),
        )

    def block_b(name, x):
        return join(
            unit(f"{name}.branch3x3", x, 384, 3, 2),
            chain(f"{name}.branch3x3dbl", x, ("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 2)),
            folded.max_pool(x, 2),
        )

    def block_c(name, x, c):
        long = [("_1", c, 1), ("_2", c, column, 1, by_column), ("_3", c, row, 1, by_row)]
        return join(
            unit(f"{name}.branch1x1", x, 192, 1),
            chain(f"{name}.branch7x7", x, ("_1", c, 1), ("_2", c, row, 1, by_row), ("_3", 192, column, 1, by_column)),
            chain(f"{name}.branch7x7dbl", x, *long, ("_4", c, column, 1, by_column), ("_5", 192, row, 1, by_row)),
            unit(f"{name}.branch_pool", folded.mean_pool(x), 192, 1),
        )

    def block_d(name, x):
        return join(
            chain(f"{name}.branch3x3", x, ("_1", 192, 1), ("_2", 320, 3, 2)),
            chain(
                f"{name}.branch7x7x3",
                x,
                ("_1", 192, 1),
                ("_2", 192, row, 1, by_row),
                ("_3", 192, column, 1, by_column),
                ("_4", 192, 3, 2),
            ),
            folded.max_pool(x, 2),
        )

    def split(name, x):
        return join(unit(f"{name}a", x, 384, (1, 3), 1, (0, 1)), unit(f"{name}b", x, 384, (3, 1), 1, (1, 0)))

    def block_e(name, x, pool):
        return join(
            unit(f"{name}.branch1x1", x, 320, 1),
            split(f"{name}.branch3x3_2", unit(f"{name}.branch3x3_1", x, 384, 1)),
            split(f"{name}.branch3x3dbl_3", chain(f"{name}.branch3x3dbl", x, ("_1", 448, 1), ("_2", 384, 3, 1, 1))),
            unit(f"{name}.branch_pool", pool(x), 192, 1),
        )

    x = chain("Conv2d_", x, ("1a_3x3", 32, 3, 2), ("2a_3x3", 32, 3), ("2b_3x3", 64, 3, 1, 1))
    stem = x = folded.max_pool(x, 2)
    x = chain("Conv2d_", x, ("3b_1x1", 80, 1), ("4a_3x3", 192, 3))
    second = x = folded.max_pool(x, 2)
    for letter, pool in zip("bcd", (32, 64, 64)):
        x = block_a(f"Mixed_5{letter}", x, pool)
    x = block_b("Mixed_6a", x)
    for letter, channels in zip("bcde", (128, 160, 160, 192)):
        x = block_c(f"Mixed_6{letter}", x, channels)
    middle = x
    x = block_d("Mixed_7a", x)
    x = block_e("Mixed_7b", x, folded.mean_pool)
    x = block_e("Mixed_7c", x, lambda x: folded.max_pool(x, 1, 1))
    return stem, second, middle, x


NETWORK = folded.Convolutional(_network, SIZE, _names, EPSILON)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of all parameters that the file of weights must have."""
    return NETWORK.shapes() | {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}


def parameters(state: dict[str, np.ndarray]) -> dict:
    """What `features` takes, from a file's parameters, whose shapes are those of `shapes`."""
    return NETWORK.parameters(state)


def prepared(images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 (repeated) or 3 -> float32 [N, 299, 299, 3] in [-1, 127/128], as the graph resizes."""
    x = resize.tf1_bilinear(images.astype(jnp.float32), SIZE)
    return jnp.broadcast_to((x - 128) / 128, (*x.shape[:3], 3))


@jax.jit
def stages(params: dict, images: jax.Array) -> list[jax.Array]:
    """uint8 [N, H, W, C] -> means over pixels at four depths: float32 [N, 64], [N, 192], [N, 768], [N, 2048]."""
    return [jnp.mean(x, axis=(1, 2)) for x in NETWORK.apply(params, prepared(images))]


def features(params: dict, images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, C], C 1 or 3 -> float32 [N, 2048], the pooled features."""
    return stages(params, images)[-1]
