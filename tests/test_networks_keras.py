"""cgan32 and dcgan28 against the same networks in Keras, on copied weights, layer by layer. SAME padding is the point.

The discriminators are held to theirs without dropout; where dropout stands and at what rate is a test of its own.
"""

import jax
import numpy as np
import pytest
from flax import nnx

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)

import tensorflow as tf  # noqa: E402
from peers import capture, keras_cgan, keras_dcgan  # noqa: E402

from idrid_jax.models import cgan, dcgan  # noqa: E402

pytestmark = pytest.mark.peer
platform_lowering = True  # XLA's own convolutions are naive loops without optimization, and in float64

# Shares of the largest value. Gradients are compared in float64 alone: see capture.filled. It comes to 1e-8 and no
# closer, because TensorFlow keeps the slope of its leaky ReLU, 0.2 or 0.3, as a float32.
TOLERANCES = {"float32": 5e-5, "float64": 3e-7}
BATCH = 3
GRADES = np.array([4, 0, 3], np.int32)
NAMES = {
    "kernel": "kernel",
    "bias": "bias",
    "embedding": "embeddings",
    "scale": "gamma",
    "mean": "moving_mean",
    "var": "moving_variance",
}
PAIRS = {  # ours, theirs, the input's shape, conditional
    "cgan32 G": (cgan.Generator, keras_cgan.generator, (100,), True),
    "cgan32 D": (cgan.Discriminator, keras_cgan.discriminator, (32, 32, 3), True),
    "dcgan28 G": (dcgan.Generator28, keras_dcgan.generator, (100,), False),
    "dcgan28 D": (dcgan.Discriminator28, keras_dcgan.discriminator, (28, 28, 1), False),
}


@pytest.fixture
def policy(dtype):
    """Keras's layers in `dtype`, and JAX's arrays too."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(dtype)
    keras.config.set_floatx(dtype)
    with jax.enable_x64(dtype == "float64"):
        yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])


def variable(layer, array, name):
    """The layer's variable that holds what ours calls `array`; BatchNorm's bias is its beta."""
    if name.startswith("norm") and array == "bias":
        return layer.beta
    return getattr(layer, NAMES[array])


def copy(arrays, peer):
    """Our arrays {(layer, array): ...} into the peer: all of ours, and all of theirs. Orders of axes are the same."""
    for (name, array), a in arrays.items():
        variable(peer.get_layer(name), array, name).assign(a)
    assert len(arrays) == sum("seed" not in v.path for v in peer.variables)


def run(peer, names, inputs, cotangent, training):
    """-> the output, {layer: (input, output)}, {variable's path: gradient}, the gradient of the first input."""
    layers = [peer.get_layer(name) for name in names]
    probe = keras.Model(peer.inputs, [peer.output, *((layer.input, layer.output) for layer in layers)])
    inputs = [tf.convert_to_tensor(a) for a in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs[0])
        output, *calls = probe(inputs if len(inputs) > 1 else inputs[0], training=training)
        loss = tf.reduce_sum(output * cotangent.reshape(output.shape))
    variables = peer.trainable_variables
    *gradients, input_gradient = tape.gradient(loss, [*(v.value for v in variables), inputs[0]])
    gradients = {v.path: tf.convert_to_tensor(g).numpy() for v, g in zip(variables, gradients, strict=True)}
    calls = {name: [t.numpy() for t in two] for name, two in zip(names, calls, strict=True)}
    return output.numpy(), calls, gradients, input_gradient.numpy()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("pair", PAIRS)
def test_layer_by_layer(pair, dtype, policy):
    """Every value between the layers, every gradient, the statistics after it, and the output in eval mode."""
    make, make_theirs, shape, conditional = PAIRS[pair]
    module, peer = capture.filled(make, dtype), make_theirs()
    generates = len(shape) == 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *shape)).astype(dtype)
    cotangent = rng.standard_normal((BATCH, *peer.output.shape[1:]) if generates else BATCH).astype(dtype)
    if not generates:
        module.eval()  # no dropout; the discriminators have no BatchNorm

    gradients = dtype == "float64"
    ours = capture.run(module, x, GRADES, cotangent if gradients else None)
    before = capture.arrays(module)
    copy(before, peer)
    calls = {call.name: call for call in ours.calls if call.name != "dropout"}
    inputs = (x, GRADES[:, None]) if conditional else (x,)
    output, their_calls, their_gradients, their_input_gradient = run(peer, list(calls), inputs, cotangent, generates)

    differences = {"output": capture.difference(ours.output, output.reshape(ours.output.shape))}
    for name, call in calls.items():
        entered, left = their_calls[name]
        differences[name, "output"] = capture.difference(call.output, left.reshape(call.output.shape))
        if name != "embed":
            differences[name, "input"] = capture.difference(call.input, entered.reshape(call.input.shape))
    if gradients:
        for (name, array), gradient in ours.gradients.items():
            path = variable(peer.get_layer(name), array, name).path
            differences[name, array, "gradient"] = capture.difference(gradient, their_gradients[path])
        assert len(ours.gradients) == len(their_gradients)
        differences["input's gradient"] = capture.difference(ours.input_gradient, their_input_gradient)

    after = capture.arrays(ours.module)
    for (name, array), a in after.items():  # the parameters as copied, and what training made of the statistics
        differences[name, array] = capture.difference(a, variable(peer.get_layer(name), array, name).numpy())
        assert array not in ("mean", "var") or np.abs(a - before[name, array]).max() > 1e-3
    if generates:
        output = peer(list(inputs) if conditional else inputs[0], training=False).numpy()
        differences["output in eval mode"] = capture.difference(capture.evaluate(ours.module, x, GRADES), output)
    print("largest:", *max(differences.items(), key=lambda item: item[1]))
    assert not {what: d for what, d in differences.items() if not d < TOLERANCES[dtype]}


@pytest.mark.parametrize("pair", ["cgan32 D", "dcgan28 D"])
def test_dropout_stands_where_keras_has_it_at_its_rate(pair):
    make, make_theirs, shape, conditional = PAIRS[pair]
    peer, module = make_theirs(), capture.filled(make, "float32")
    theirs = [layer for layer in peer.layers if isinstance(layer, keras.layers.Dropout)]
    x = np.random.default_rng(0).uniform(-1, 1, (BATCH, *shape)).astype(np.float32)

    @jax.jit
    def call(x, key):
        with capture.recorded(module) as calls:
            module(x, GRADES, rngs=nnx.Rngs(dropout=key))
        return [(a, b) for name, a, b in calls if name == "dropout"]

    ours = call(x, jax.random.key(0))
    assert [a.shape[1:] for a, _ in ours] == [layer.input.shape[1:] for layer in theirs]
    for (entered, left), layer in zip(ours, theirs, strict=True):
        assert module.dropout.rate == layer.rate
        entered, left = np.asarray(entered), np.asarray(left)
        kept = left != 0
        np.testing.assert_allclose(left[kept], entered[kept] / (1 - layer.rate), rtol=1e-6)
        assert abs(kept.mean() - (1 - layer.rate)) < 4 * np.sqrt(layer.rate * (1 - layer.rate) / kept.size)
