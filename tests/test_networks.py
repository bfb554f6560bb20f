"""The networks: sizes of the thesis, dtypes, grades, dropout, initialization, and the table of layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peers import capture

from idrid_jax.config import default_config
from idrid_jax.models import NETWORKS, cgan, dcgan
from idrid_jax.models.functional import functional
from idrid_jax.models.layer_table import networks_table
from idrid_jax.models.layers import output_tanh

COUNTS = {  # trainable parameters of generator and discriminator
    "cgan32": (1_382_077, 212_987),
    "dcgan28": (2_305_472, 212_865),
    "dcgan64": (3_576_704, 2_765_568),
    "dcgan128": (3_622_784, 2_811_648),
    "dcgan256": (11_967_360, 11_156_224),
    "dcgan512": (16_162_688, 15_351_552),
    "dcgan1024": (20_358_016, 19_546_880),
}
GRADES = np.array([0, 4, 2], np.int32)
NARROW = {  # one of each kind, narrow if possible
    "cgan32": (cgan.Generator, cgan.Discriminator),
    "dcgan28": (dcgan.Generator28, dcgan.Discriminator28),
    "dcgan64": (functools.partial(dcgan.Generator, 64, width=8), functools.partial(dcgan.Discriminator, 64, width=8)),
}
names = pytest.mark.parametrize("name", COUNTS)
kinds = pytest.mark.parametrize("name", NARROW)
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def shapes(make, dtype=jnp.float32):
    """Return the network with shapes instead of arrays."""
    return nnx.eval_shape(lambda: make(dtype=dtype, rngs=nnx.Rngs(0)))


def inputs(name, which, batch=3):
    """Return an input of the generator (0) or the discriminator (1)."""
    network, rng = NETWORKS[name], np.random.default_rng(0)
    if which == 0:
        return rng.standard_normal((batch, network.latent_size)).astype(np.float32)
    return rng.uniform(-1, 1, (batch, network.size, network.size, network.channels)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _call(graph, state, x, grades, keys):
    module = nnx.merge(graph, state)
    return module(x, grades, **{name: nnx.Rngs(dropout=key) for name, key in keys.items()}), nnx.state(module)


def call(module, x, grades=GRADES, key=None):
    """Return the output and the new state, under jit, with a key for dropout if there is one."""
    graph, state = nnx.split(module)
    return _call(graph, state, x, grades, {} if key is None else {"rngs": jax.random.key(key)})


def test_networks_by_name():
    retina = {f"retina{size}" for size in (64, 128, 256, 512, 1024)}  # see test_retina.py
    assert set(NETWORKS) == set(COUNTS) | retina
    assert {name for name, network in NETWORKS.items() if network.conditional} == {"cgan32"} | retina


@names
def test_parameter_counts(name):
    network = NETWORKS[name]
    for make, count in zip((network.generator, network.discriminator), COUNTS[name], strict=True):
        parameters = nnx.state(shapes(make), nnx.Param)
        assert sum(math.prod(a.shape) for a in jax.tree.leaves(parameters)) == count


@pytest.mark.parametrize("size", [256, 1024])
def test_channels_of_deeper_dcgans(size):
    """Levels from 4 x 4 to the image, with channels that double away from the image up to the limit."""
    levels = size.bit_length() - 3
    for most in (512, 96):
        channels = [min(most, 64 << level) for level in range(levels)]
        generator = shapes(functools.partial(dcgan.Generator, size, max_channels=most))
        discriminator = shapes(functools.partial(dcgan.Discriminator, size, max_channels=most))
        assert [up.kernel.shape[2] for up in generator.up] == channels[::-1]
        assert [conv.kernel.shape[3] for conv in (discriminator.image, *discriminator.down)] == channels


@pytest.mark.parametrize("which", [0, 1])
def test_remat_changes_no_result(which):
    """Neither gradients nor statistics; and the backward pass computes convolutions again."""
    make, x = NARROW["dcgan64"][which], inputs("dcgan64", which)

    def loss(params, stats, remat):
        network = functional(lambda rngs: make(remat=remat, rngs=rngs))
        y, stats = network.train(params, stats, x, GRADES)
        return (y**2).mean(), stats

    arrays = functional(lambda rngs: make(rngs=rngs)).init(jax.random.key(0, impl="rbg"))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    convolutions = []
    for remat in (False, True):
        convolutions.append(str(step.trace(*arrays, remat).jaxpr).count("conv_general_dilated["))
    assert convolutions[1] > convolutions[0]
    for a, b in zip(jax.tree.leaves(step(*arrays, False)), jax.tree.leaves(step(*arrays, True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max())


@names
@dtypes
def test_shapes_and_dtypes(name, dtype):
    """Logits have the given dtype and images float32; parameters and statistics are float32 before and after a call."""
    network = NETWORKS[name]
    expected = (3, network.size, network.size, network.channels), (3,)
    for which, make in enumerate((network.generator, network.discriminator)):

        def once(x, grades, key):
            module = make(dtype=dtype, rngs=nnx.Rngs(0))
            before = nnx.state(module)
            keys = {} if which == 0 else {"rngs": nnx.Rngs(dropout=key)}
            return module(x, grades, **keys), before, nnx.state(module)

        output, *states = jax.eval_shape(once, inputs(name, which), GRADES, jax.random.key(0))
        assert output.shape == expected[which]
        assert output.dtype == (jnp.float32 if which == 0 else dtype)
        assert {a.dtype for a in jax.tree.leaves(states)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["cgan32", "dcgan64"])
def test_bfloat16_is_close_to_float32(name):
    """In training and in evaluation mode; images are in [-1, 1]."""
    for which, make in enumerate(NARROW[name]):
        outputs, statistics = {}, {}
        for dtype in (jnp.float32, jnp.bfloat16):
            module = capture.filled(make, np.float32)
            graph, _ = nnx.split(shapes(make, dtype))
            module = nnx.merge(graph, nnx.to_pure_dict(nnx.state(module)))
            trained, state = call(module, inputs(name, which), key=None if which == 0 else 0)
            module.eval()
            used, _ = call(module, inputs(name, which))
            outputs[dtype] = [np.asarray(a, np.float32) for a in (trained, used)]
            statistics[dtype] = jax.tree.leaves(nnx.to_pure_dict(state))
        for wide, narrow in zip(outputs[jnp.float32], outputs[jnp.bfloat16], strict=True):
            assert np.isfinite(narrow).all() and np.ptp(narrow) > 0
            assert which == 1 or np.abs(narrow).max() <= 1
            assert 0 < np.abs(wide - narrow).max() < 0.05 * np.abs(wide).max()
        for wide, narrow in zip(statistics[jnp.float32], statistics[jnp.bfloat16], strict=True):
            assert narrow.dtype == jnp.float32
            np.testing.assert_allclose(narrow, wide, rtol=0, atol=0.01 * np.abs(wide).max())


@pytest.mark.parametrize("name", ["cgan32", "dcgan28", "dcgan64"])
def test_a_saturated_bfloat16_generator_has_gradients(name):
    """tanh in bfloat16 has no gradient beyond 3.5."""
    white = jnp.full((1, 2, 2, 3), 6.0, jnp.bfloat16)
    gradients = [jax.grad(lambda x: activation(x).sum())(white) for activation in (output_tanh, jnp.tanh)]
    assert (gradients[0] > 0).all() and not gradients[1].any()
    generate = lambda: NARROW[name][0](dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(inputs(name, 0), GRADES)
    assert jax.eval_shape(generate).dtype == jnp.float32


@pytest.mark.parametrize("make", NARROW["cgan32"])
def test_grades_change_the_conditional_network(make):
    module = capture.filled(make, np.float32)
    module.eval()
    x = np.repeat(inputs("cgan32", NARROW["cgan32"].index(make), batch=1), 3, axis=0)
    y = np.asarray(call(module, x)[0])
    assert all(np.abs(y[i] - y[j]).max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", sorted(COUNTS.keys() - {"cgan32"}))
def test_unconditional_networks_ignore_the_grades(name):
    """They run without grades, so grades cannot matter."""
    network = NETWORKS[name]
    for which, make in enumerate((network.generator, network.discriminator)):

        def once(x, make=make):
            module = make(rngs=nnx.Rngs(0))
            module.eval()
            return module(x, None)

        jax.eval_shape(once, inputs(name, which))  # must not raise


@pytest.mark.parametrize("name", ["cgan32", "dcgan28"])
def test_dropout_takes_its_key_at_the_call(name):
    module, x = capture.filled(NARROW[name][1], np.float32), inputs(name, 1)
    first, again, other = (np.asarray(call(module, x, key=key)[0]) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
    with pytest.raises(ValueError, match="rngs"):
        module(x, GRADES)
    module.eval()
    used = [np.asarray(call(module, x, key=key)[0]) for key in (None, 0)]
    np.testing.assert_array_equal(*used)


@names
def test_the_state_holds_no_random_keys(name):
    for make in (NETWORKS[name].generator, NETWORKS[name].discriminator):
        state = nnx.state(shapes(make))
        assert not jax.tree.leaves(nnx.state(shapes(make), nnx.RngState))
        assert {variable.type for _, variable in nnx.to_flat_state(state)} <= {nnx.Param, nnx.BatchStat}


@kinds
def test_initial_weights_are_distributed_as_in_keras_and_pytorch(name):
    """Glorot's limits and zero biases as in Keras; N(0, 0.02) and scales N(1, 0.02) as in the PyTorch tutorial."""
    for make in (functools.partial(make, width=16) for make in NARROW[name]):
        begin = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(key)))))
        arrays = begin(jax.random.key(0, impl="rbg"))  # compiles five times faster than the default
        torch = name == "dcgan64"
        for (layer, array), a in capture.by_layer(arrays).items():
            error = 4 / np.sqrt(a.size)  # four standard errors, in standard deviations
            if array == "kernel" and torch:
                assert abs(a.std() / 0.02 - 1) < error and abs(a.mean() / 0.02) < error and np.abs(a).max() > 0.05
            elif array == "kernel":
                field = math.prod(a.shape[:-2])
                limit = math.sqrt(6 / (field * (a.shape[-2] + a.shape[-1])))
                assert 0.99 * limit < np.abs(a).max() <= limit and abs(a.mean() / limit) < error
                assert abs(a.std() / (limit / math.sqrt(3)) - 1) < error
            elif array == "embedding":
                assert 0.045 < np.abs(a).max() <= 0.05 and abs(a.mean() / 0.05) < error
            elif array == "scale" and torch:
                assert abs(a.std() / 0.02 - 1) < error and abs((a.mean() - 1) / 0.02) < error
            else:
                assert array in ("bias", "mean", "scale", "var")
                np.testing.assert_array_equal(a, 1.0 if array in ("scale", "var") else 0.0)


@pytest.mark.parametrize("name", ["cgan32", "dcgan64"])
def test_the_layer_table_lists_every_layer(name):
    config = default_config()
    config.network, config.dtype = name, "bfloat16"
    network = NETWORKS[name]
    tables = networks_table(config).split("\n\n")
    for table, make, count in zip(tables, (network.generator, network.discriminator), COUNTS[name], strict=True):
        rows = {row[0]: row for row in map(str.split, table.splitlines())}
        for path, part in nnx.iter_modules(shapes(make)):
            if path and not isinstance(part, nnx.List):
                assert rows["/".join(map(str, path))][1] == type(part).__name__
        assert f"{count:,}" in table
    if name == "dcgan64":
        assert "ConvTranspose  bfloat16[1,32,32,64]" in tables[0] and "kernel: float32[4,4,3,64]" in tables[0]
        assert "mean: float32[256]" in tables[0]
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"  # the recording of calls has ended
