"""A fixed random convolutional network: features without any trained weights.

Nothing has taught it what a retina is. It sees colours, contrasts and textures at four scales, so it tells what is
plainly different and is blind to what takes an expert; results that use it carry its NAME. Random features
in distances of generated images: Naeem et al., "Reliable fidelity and diversity metrics", ICML 2020, section 3.3 (R64).
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from idrid_jax.batching import map_in_batches
from idrid_jax.evaluation.features.extractor import FeatureExtractor, check_images

CHANNELS = (8, 24, 32, 64)  # of the blocks; their sum is D
D = sum(CHANNELS)
NAME = f"random-convolutions-v1-{D}"  # another architecture is another name: the cache is keyed by it


def network(seed: int = 0) -> FeatureExtractor:
    """The network whose weights `seed` draws, by a name that says that nothing has trained it."""
    return FeatureExtractor(f"{NAME}-seed{seed} (untrained)", partial(extract, seed=seed))


def extract(images: np.ndarray, *, seed: int = 0, batch: int = 64) -> np.ndarray:
    """uint8 [N, H, W, C], C 1 (repeated to 3) or 3, any H and W -> float32 [N, 128], means of each block's channels.

    seed: of the weights, which depend on nothing else (NumPy's frozen Mersenne Twister).
    Raises ValueError for images of another form.
    """
    return map_in_batches(partial(_forward, weights(seed)), check_images(images), batch_size=batch)


@cache
def weights(seed: int) -> tuple[np.ndarray, ...]:
    """float32 [3, 3, in, out] of each block, He et al. 2015's scale."""
    rng = np.random.RandomState(seed)  # its stream is frozen (NEP 19), a Generator's is not
    shapes = [(3, 3, i, o) for i, o in zip((3, *CHANNELS), CHANNELS)]
    return tuple((rng.standard_normal(s) * np.sqrt(2 / np.prod(s[:3]))).astype(np.float32) for s in shapes)


@jax.jit
def _forward(kernels, images):
    x = images.astype(jnp.float32) / 127.5 - 1
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    means = []
    for kernel in kernels:
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST
        )
        x = jax.nn.relu(x)
        means.append(jnp.mean(x, axis=(1, 2)))
        if min(x.shape[1:3]) > 1:
            x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return jnp.concatenate(means, axis=-1)
