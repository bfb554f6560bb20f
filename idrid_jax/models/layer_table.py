"""The layers of both networks with their shapes, as text: printed when a run starts."""

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from idrid_jax.models import NETWORKS, build_networks
from idrid_jax.models.functional import Functional


def networks_table(config: ml_collections.ConfigDict) -> str:
    """List the layers of both networks of `config` with their parameters and the shapes that one image gives them."""
    network = NETWORKS[config.network]
    z = jax.ShapeDtypeStruct((1, network.latent_size), jnp.float32)
    images = jax.ShapeDtypeStruct((1, network.size, network.size, network.channels), jnp.float32)
    grades = jax.ShapeDtypeStruct((1,), jnp.int32)
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.remat = False  # the same layers; with it, they are called as copies that have no path
    generator, discriminator = build_networks(config)
    return f"{_table(generator, z, grades)}\n\n{_table(discriminator, images, grades)}"


def _table(network: Functional, *inputs: jax.ShapeDtypeStruct) -> str:
    """List the layers in the order of their calls. Traces one call over shapes: nothing is computed or compiled."""
    tables = []

    def tabulate(*inputs):
        table = nnx.tabulate(
            network.zero_module(),
            *inputs,
            table_kwargs=dict(box=None),
            console_kwargs=dict(width=160, force_terminal=False),
        )
        tables.append("\n".join(line.rstrip() for line in table.splitlines() if line.strip()))

    jax.eval_shape(tabulate, *inputs)
    return tables[0]
