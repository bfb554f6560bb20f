"""The grader: a small residual network that reads the grade of diabetic retinopathy off a photograph.

Pre-activation residual blocks (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016) with GroupNorm (Wu
and He, ECCV 2018), which needs no running statistics and does not care how a batch is mixed of real and synthetic.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from idrid_jax.models.initializers import variance_scaled
from idrid_jax.models.layers import Conv

GROUPS = 8
HE = variance_scaled(math.sqrt(2), truncated=True)  # He's, of Keras and Flax


class Block(nnx.Module):
    """[N, H, W, I] -> [N, H, W, O]: two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        convolution = dict(bias=False, init=HE, dtype=jnp.float32, rngs=rngs)
        self.norm1 = nnx.GroupNorm(inputs, num_groups=GROUPS, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, 3, 1, (1, 1), **convolution)
        self.norm2 = nnx.GroupNorm(outputs, num_groups=GROUPS, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, 3, 1, (1, 1), **convolution)
        self.shortcut = Conv(inputs, outputs, 1, 1, (0, 0), **convolution) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


class Grader(nnx.Module):
    """Images [N, R, R, C] in [-1, 1] -> logits [N, classes] (of several questions beside each other), R at least 14.

    A block a level, halved by averaging between levels down to 7 or 8 pixels; channels from `width`, doubled at each
    level up to four times that.
    """

    def __init__(self, size: int, channels: int, classes: int, width: int = 16, *, rngs: nnx.Rngs):
        levels = max(1, round(math.log2(size / 7.5)))
        widths = [width * min(4, 2**level) for level in range(levels + 1)]
        convolution = dict(bias=False, init=HE, dtype=jnp.float32, rngs=rngs)
        self.stem = Conv(channels, width, 3, 1, (1, 1), **convolution)
        self.blocks = nnx.List([Block(i, o, rngs=rngs) for i, o in zip([width, *widths], widths)])
        self.norm = nnx.GroupNorm(widths[-1], num_groups=GROUPS, rngs=rngs)
        self.logits = nnx.Linear(widths[-1], classes, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """What the logits are made of: [N, 4 * width], the mean over the positions of the last level."""
        x = self.stem(images)
        for level, block in enumerate(self.blocks):
            x = block(nnx.avg_pool(x, (2, 2), (2, 2)) if level else x)
        return nnx.relu(self.norm(x)).mean(axis=(1, 2))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.logits(self.features(images))
