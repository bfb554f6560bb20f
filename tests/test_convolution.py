"""`conv`, `conv_input` and `conv_kernel` against `lax` and its autodiff, in float64, where equal means 1e-12."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from idrid_jax.models.convolution import (
    Layer,
    blocking,
    columns,
    conv,
    conv_input,
    conv_kernel,
    lowering,
    out_size,
    pixel_blocks,
    winograd,
)

# (height, width), kernel, stride, padding. Odd and even kernels, every stride to 4, uneven padding, sizes that no
# stride divides, kernels smaller than the stride (rows that no output saw), and the shapes of the networks' own layers.
CASES = [
    ((7, 5), 3, 1, (1, 1)),
    ((9, 8), 8, 1, (3, 4)),  # cgan32, image
    ((4, 4), 4, 1, (0, 0)),  # dcgan, logit
    ((7, 9), 3, 2, (0, 1)),  # cgan32, down
    ((7, 8), 5, 2, (1, 2)),  # dcgan28
    ((8, 6), 4, 2, (1, 1)),  # dcgan, down
    ((11, 7), 2, 2, (0, 0)),  # leaves a row over
    ((9, 5), 1, 2, (0, 0)),  # kernel smaller than the stride
    ((8, 11), 5, 3, (2, 0)),
    ((7, 10), 4, 3, (3, 1)),
    ((16, 20), 16, 4, (6, 6)),  # dcgan128, image
    ((11, 14), 3, 4, (1, 0)),
]
IDENTIFIERS = [f"{h}x{w}_k{k}s{s}p{lo}{hi}" for (h, w), k, s, (lo, hi) in CASES]
cases = pytest.mark.parametrize("size, kernel, stride, padding", CASES, ids=IDENTIFIERS)
# One of each kind for the dearer tests.
FEW = [((6, 7), 4, 1, (1, 2)), ((7, 8), 5, 2, (1, 2)), ((10, 7), 2, 3, (0, 1)), ((13, 9), 5, 4, (0, 3))]
few = pytest.mark.parametrize("size, kernel, stride, padding", FEW)


@pytest.fixture(autouse=True)
def full_precision():
    """A GPU would round float32 products to TF32."""
    with jax.default_matmul_precision("highest"):
        yield


def arrays(size, kernel, stride, padding, dtype=np.float64, batch=2, inputs=2, outputs=3):
    """Images, kernel and features of fitting shapes."""
    rng = np.random.default_rng([*size, kernel, stride, *padding])
    features = [out_size(rows, kernel, stride, padding) for rows in size]
    x = rng.standard_normal((batch, *size, inputs))
    w = rng.standard_normal((kernel, kernel, inputs, outputs))
    g = rng.standard_normal((batch, *features, outputs))
    return tuple(jnp.asarray(a, dtype) for a in (x, w, g))


def maps(size, kernel, stride, padding):
    """The three maps as functions of two arrays: ours, and `lax`'s with JAX's autodiff."""
    ours = (
        lambda x, w: conv(x, w, stride, padding),
        lambda g, w: conv_input(g, w, stride, padding, size),
        lambda x, g: conv_kernel(x, g, stride, padding, kernel),
    )

    def forward(x, w):
        return lax.conv_general_dilated(
            x, w, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def to_input(g, w):
        x = jnp.zeros((g.shape[0], *size, w.shape[2]), g.dtype)
        return jax.vjp(lambda x: forward(x, w), x)[1](g)[0]

    def to_kernel(x, g):
        w = jnp.zeros((kernel, kernel, x.shape[-1], g.shape[-1]), x.dtype)
        return jax.vjp(lambda w: forward(x, w), w)[1](g)[0]

    return ours, (forward, to_input, to_kernel)


def value_and_gradients(function, a, b, cotangent):
    value, pull = jax.vjp(function, a, b)
    return value, *pull(cotangent)


def penalty(function, a, b):
    """What a gradient penalty asks of a layer: the squared gradient in `a` of something not linear in it."""
    return jnp.sum(jax.grad(lambda a: jnp.sum(jnp.tanh(function(a, b))))(a) ** 2)


def assert_close(ours, theirs, tolerance):
    """Equal shapes and dtypes, and equal to `tolerance` of the largest value."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-30))


@functools.cache
def values_and_gradients(which, *case):
    """Of the three maps in float64, ours (0) or JAX's (1): each is (value, gradient in either argument)."""
    with jax.enable_x64(True):
        x, w, g = arrays(*case)
        at = ((x, w, g), (g, w, x), (x, g, w))  # both arguments, and the cotangent
        run = jax.jit(
            lambda at: [value_and_gradients(f, *three) for f, three in zip(maps(*case)[which], at, strict=True)]
        )
        return jax.tree.map(np.asarray, run(at))


@cases
def test_values_and_both_gradients_are_those_of_lax(size, kernel, stride, padding):
    ours, theirs = (values_and_gradients(which, size, kernel, stride, padding) for which in (0, 1))
    assert all(a.dtype == np.float64 for a in jax.tree.leaves(ours))
    assert_close(ours, theirs, 1e-12)


@few
def test_second_derivatives_are_those_of_lax(size, kernel, stride, padding):
    with jax.enable_x64(True):
        x, w, g = arrays(size, kernel, stride, padding)
        at = ((x, w), (g, w), (x, g))

        def run(functions):
            gradients = [jax.grad(functools.partial(penalty, f), (0, 1)) for f in functions]
            return jax.jit(lambda at: [gradient(*two) for gradient, two in zip(gradients, at, strict=True)])(at)

        ours, theirs = (run(functions) for functions in maps(size, kernel, stride, padding))
        assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(ours))
        assert_close(ours, theirs, 1e-12)


@cases
def test_the_three_are_adjoint(size, kernel, stride, padding):
    """<conv(x, w), g> = <x, conv_input(g, w)> = <w, conv_kernel(x, g)>."""
    with jax.enable_x64(True):
        x, w, g = (np.asarray(a) for a in arrays(size, kernel, stride, padding))
    (features, *_), (images, *_), (kernels, *_) = values_and_gradients(0, size, kernel, stride, padding)
    scale = np.linalg.norm(features) * np.linalg.norm(g)
    assert abs(np.vdot(features, g) - np.vdot(x, images)) < 1e-13 * scale
    assert abs(np.vdot(features, g) - np.vdot(w, kernels)) < 1e-13 * scale


# (height, width), kernel, stride, padding, inputs, outputs -> what a CPU takes for the three maps
FORMS = {
    "winograd": (((8, 6), 4, 2, (1, 1), 5, 6), (winograd.conv, winograd.conv_input, winograd.conv_kernel)),
    "winograd, stride 1": (((7, 9), 5, 1, (2, 2), 5, 6), (winograd.conv, winograd.conv_input, winograd.conv_kernel)),
    "winograd, kernel alone": (((8, 8), 3, 2, (0, 1), 5, 6), (None, None, winograd.conv_kernel)),
    "thin images": (
        ((9, 8), 5, 2, (1, 2), 3, 6),
        ("ThinImages.conv", "ThinImages.conv_input", "ThinImages.conv_kernel"),
    ),
    "thin features": (
        ((9, 8), 8, 1, (3, 4), 5, 3),
        ("ThinFeatures.conv", "ThinFeatures.conv_input", "ThinFeatures.conv_kernel"),
    ),
    "dense": (((4, 4), 4, 1, (0, 0), 5, 6), (columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel)),
    "native": (((9, 5), 1, 2, (0, 0), 5, 6), (None, None, None)),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_each_layer_takes_the_form_that_is_tested_here(form):
    (size, kernel, stride, padding, inputs, outputs), expected = FORMS[form]
    lowered = Layer(kernel, stride, padding, size, "platform").cpu(inputs, outputs)
    for found, wanted in zip(lowered, expected, strict=True):
        found = getattr(found, "func", found)  # of a partial
        assert found is wanted if not isinstance(wanted, str) else found.__qualname__ == wanted


@forms
@pytest.mark.parametrize("batch, parts", [(1, 1), (6, 3)])
def test_every_form_equals_the_native_one(form, batch, parts, monkeypatch):
    """In float64, values and both gradients; also with the batch worked through in parts."""
    monkeypatch.setattr(blocking, "parts_of", lambda *_: parts)
    monkeypatch.setattr(winograd, "parts_of", lambda *_: parts)
    monkeypatch.setattr(columns, "parts_of", lambda *_: parts)
    (size, kernel, stride, padding, inputs, outputs), _ = FORMS[form]
    case = size, kernel, stride, padding
    with jax.enable_x64(True):
        x, w, g = arrays(*case, batch=batch, inputs=inputs, outputs=outputs)
        at = ((x, w, g), (g, w, x), (x, g, w))
        run = lambda: [value_and_gradients(f, *three) for f, three in zip(maps(*case)[0], at, strict=True)]
        ours = jax.jit(lambda: run())()
        with lowering("native"):
            theirs = jax.jit(lambda: run())()
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize(
    "form, platform",
    [*((form, "cpu") for form in FORMS if form != "native"), ("thin images", "cuda"), ("dense", "cuda")],
)
def test_second_derivatives_of_every_form_are_the_native_ones(form, platform, monkeypatch):
    """Of the three maps, in both arguments, in float64, the batch in parts: what gradient penalties ask of a layer. The
    forms of a GPU run here in the place of a CPU's."""
    for module in (blocking, winograd, columns):
        monkeypatch.setattr(module, "parts_of", lambda *_: 3)
    if platform == "cuda":
        monkeypatch.setattr(Layer, "cpu", lambda layer, inputs, outputs: layer.cuda(inputs))
    (size, kernel, stride, padding, inputs, outputs), _ = FORMS[form]
    case = size, kernel, stride, padding
    with jax.enable_x64(True):
        x, w, g = arrays(*case, batch=3, inputs=inputs, outputs=outputs)
        at = ((x, w), (g, w), (x, g))
        gradients = [jax.grad(functools.partial(penalty, f), (0, 1)) for f in maps(*case)[0]]
        run = lambda: [gradient(*two) for gradient, two in zip(gradients, at, strict=True)]
        ours = jax.jit(lambda: run())()
        with lowering("native"):
            theirs = jax.jit(lambda: run())()
        assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(ours))
        assert_close(ours, theirs, 1e-12)


# The same -> what of `pixel_blocks` or `columns` an NVIDIA GPU takes; None: lax's own
CUDA_FORMS = {
    "images of few channels": (((16, 20), 16, 4, (6, 6), 3, 6), "strided"),
    "uneven": (((9, 8), 5, 2, (1, 2), 1, 6), "strided"),
    "rows left over": (((11, 7), 3, 2, (0, 1), 4, 6), "strided"),
    "kernel smaller than the stride": (((11, 14), 3, 4, (1, 0), 3, 5), "strided"),
    "dense": (((4, 4), 4, 1, (0, 0), 5, 6), "dense_conv"),
    "many channels": (((8, 6), 4, 2, (1, 1), 5, 6), None),
    "stride 1": (((9, 8), 8, 1, (3, 4), 5, 3), None),
    "one tap": (((9, 5), 1, 2, (0, 0), 3, 6), None),
}


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_form_of_a_gpu_equals_the_native_one(form, monkeypatch):
    """In float64; the forms run on any platform. No GPU is needed."""
    (size, kernel, stride, padding, inputs, outputs), expected = CUDA_FORMS[form]
    taken = []
    for module, name in ((pixel_blocks, "strided"), (columns, "dense_conv")):
        wrapped = lambda *args, name=name, real=getattr(module, name): taken.append(name) or real(*args)
        monkeypatch.setattr(module, name, wrapped)
    layer = Layer(kernel, stride, padding, size, "platform")
    with jax.enable_x64(True):
        x, w, g = arrays(size, kernel, stride, padding, inputs=inputs, outputs=outputs)
        for ours, theirs, two in zip(layer.cuda(inputs), layer.native(), ((x, w), (g, w), (x, g)), strict=True):
            assert (ours is None) == (expected is None)
            if ours is not None:
                assert_close(jax.jit(ours)(*two), jax.jit(theirs)(*two), 1e-12)
    assert taken[0] == expected if expected else not taken


@given(
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    batch=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_equals_lax(size, kernel, stride, padding, inputs, outputs, batch):
    case = size, kernel, stride, padding
    assume(min(out_size(rows, kernel, stride, padding) for rows in size) >= 1)
    with jax.enable_x64(True):
        x, w, g = arrays(*case, batch=batch, inputs=inputs, outputs=outputs)
        at = ((x, w), (g, w), (x, g))
        ours, theirs = ([jax.jit(f)(*two) for f, two in zip(functions, at, strict=True)] for functions in maps(*case))
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("m, r", [(2, 2), (4, 2), (4, 3), (4, 4), (4, 5)])
def test_minimal_filtering_is_a_correlation(m, r):
    """y = A^T [(G w) * (B^T x)] against NumPy's own."""
    a, g, b = winograd.matrices(m, r)
    rng = np.random.default_rng(m * 10 + r)
    x, w = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), np.correlate(x, w, "valid"), atol=1e-13)


def test_an_unknown_lowering_is_refused():
    with pytest.raises(ValueError, match="native or platform"), lowering("fastest"):
        pass


def test_native_lowering_is_lax_alone():
    """Within it the program holds one convolution a map; without it a CPU's holds none (but takes matrix products)."""
    x, w, _ = arrays((8, 8), 4, 2, (1, 1), np.float32, inputs=8, outputs=8)
    text = lambda: jax.jit(lambda x, w: conv(x, w, 2, (1, 1))).lower(x, w).as_text()
    with lowering("native"):
        assert text().count("stablehlo.convolution") == 1
    if jax.default_backend() == "cpu":
        assert "stablehlo.convolution" not in text() and "dot_general" in text()


@functools.partial(jax.jit, static_argnums=(0, 1))
def values(which, case, x, w, g):
    """Of the three maps: ours (0) or JAX's (1)."""
    return [f(*two) for f, two in zip(maps(*case)[which], ((x, w), (g, w), (x, g)), strict=True)]


@few
def test_float32_is_equal_to_its_rounding(size, kernel, stride, padding):
    case = size, kernel, stride, padding
    given = arrays(*case, np.float32)
    assert_close(values(0, case, *given), values(1, case, *given), 2e-5)  # as `winograd` says


@few
def test_bfloat16_stays_itself_within_its_rounding(size, kernel, stride, padding):
    """Eight bits: half a unit in the last place for the result, as much again for partial sums."""
    case = size, kernel, stride, padding
    given = arrays(*case, jnp.bfloat16)
    ours = values(0, case, *given)
    assert all(a.dtype == jnp.bfloat16 for a in ours)
    wide = [a.astype(jnp.float32) for a in given]
    assert_close([a.astype(jnp.float32) for a in ours], values(1, case, *wide), 2**-8)


def test_gradients_for_each_example():
    """`vmap` of `grad`, as penalties for each example write it."""
    size, kernel, stride, padding = FEW[1]
    with jax.enable_x64(True):
        x, w, _ = arrays(size, kernel, stride, padding, batch=3)
        (ours, *_), (theirs, *_) = maps(size, kernel, stride, padding)

        def each(function):
            gradient = jax.grad(lambda x, w: jnp.sum(jnp.tanh(function(x[None], w))), (0, 1))
            return jax.vmap(gradient, (0, None))(x, w)

        assert_close(each(ours), each(theirs), 1e-12)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel, padding", [(3, {7: (1, 1), 8: (0, 1)}), (5, {7: (2, 2), 8: (1, 2)})])
def test_same_padding_of_keras_is_that_of_lax(size, kernel, padding):
    """The uneven padding that the Keras networks state in pixels is XLA's SAME at stride 2 and an even size."""
    x, w, _ = arrays((size, size), kernel, 2, padding[size], np.float32)
    theirs = lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(conv(x, w, 2, padding[size]), theirs, 1e-6)
