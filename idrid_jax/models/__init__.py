"""The networks by name, `NETWORKS`, and `build_networks`, which builds those of a configuration.

Every generator maps (z, grades) to images, and every discriminator maps (images, grades, rngs=) to logits:

    z        float32 [B, latent_size]
    grades   int32 [B], or weights of the five grades, float32 [B, 5]; unconditional networks ignore them
    images   [B, size, size, channels] in [-1, 1]
    logits   [B]

A discriminator is `logits(features(images, grades, rngs=), grades)`; feature matching compares its features [B, ...].
README.md says how to add a network.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import ml_collections
from flax import nnx

from idrid_jax.models import cgan, class_merging, dcgan, retina
from idrid_jax.models.functional import Functional, functional, with_class_map


@dataclasses.dataclass(frozen=True)
class Network:
    """A generator, a discriminator and what their callers must know about them."""

    generator: Callable[..., nnx.Module]  # (dtype=, rngs=) -> module
    discriminator: Callable[..., nnx.Module]  # (dtype=, rngs=) -> module
    size: int  # pixels per side
    channels: int
    conditional: bool
    latent_size: int = 100
    supports_conditioning_ramp: bool = False  # accepts grade weights that sum to less than 1; see `config.conditioning`
    batch_norm: bool = True  # the output for an image depends on the others of its batch
    options: tuple[str, ...] = ()  # fields of `config.model` that both modules take as arguments

    @property
    def family(self) -> tuple[Callable, ...]:
        """The module classes, which networks of the same design and another size share."""
        return tuple(getattr(module, "func", module) for module in (self.generator, self.discriminator))

    @property
    def sample_batch_size(self) -> int:
        """Images per batch outside of training: 64 of up to 128 pixels per side, as many pixels of larger images."""
        return max(1, 64 * min(128, self.size) ** 2 // self.size**2)


def _dcgan(size: int) -> Network:
    return Network(
        functools.partial(dcgan.Generator, size),
        functools.partial(dcgan.Discriminator, size),
        size=size,
        channels=3,
        conditional=False,
        options=("remat", "max_channels") if size > 128 else ("remat",),
    )


def _retina(size: int) -> Network:
    return Network(
        functools.partial(retina.Generator, size),
        functools.partial(retina.Discriminator, size),
        size=size,
        channels=3,
        conditional=True,
        latent_size=retina.LATENT_SIZE,
        supports_conditioning_ramp=True,
        batch_norm=False,
        options=("remat", "max_channels"),
    )


NETWORKS = {
    "cgan32": Network(cgan.Generator, cgan.Discriminator, size=32, channels=3, conditional=True, batch_norm=False),
    "dcgan28": Network(dcgan.Generator28, dcgan.Discriminator28, size=28, channels=1, conditional=False),
    "dcgan64": _dcgan(64),
    "dcgan128": _dcgan(128),
    "dcgan256": _dcgan(256),
    "dcgan512": _dcgan(512),
    "dcgan1024": _dcgan(1024),
    **{f"retina{size}": _retina(size) for size in (64, 128, 256, 512, 1024)},
}


def build_networks(config: ml_collections.ConfigDict) -> tuple[Functional, Functional]:
    """Build the generator and the discriminator that `config.network` names, computing in `config.dtype`.

    Callers pass grades; under `config.data.merge_classes` the networks map them to their classes.
    """
    network, dtype = NETWORKS[config.network], jnp.dtype(config.dtype)
    options = {name: config.model[name] for name in network.options}
    class_map = class_merging.class_map(config.data.merge_classes)

    def build(module: Callable[..., nnx.Module]) -> Functional:
        return with_class_map(functional(functools.partial(module, dtype=dtype, **options)), class_map)

    return build(network.generator), build(network.discriminator)
