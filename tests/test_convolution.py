"""The three convolution maps against `lax` and its automatic differentiation, in float64 to 1e-12."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from idrid_jax.models.convolution import (
    ConvSpec,
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

platform_lowering = True  # the lowerings are what is tested

# (height, width), kernel, stride, padding. Odd and even kernels, every stride to 4, uneven padding, sizes that are
# not multiples of the stride, kernels smaller than the stride (rows without influence), and layers of the networks.
CASES = [
    ((7, 5), 3, 1, (1, 1)),  # retina
    ((9, 8), 8, 1, (3, 4)),  # cgan32, image
    ((4, 4), 4, 1, (0, 0)),  # dcgan, logit
    ((7, 9), 3, 2, (0, 1)),  # cgan32, down
    ((7, 8), 5, 2, (1, 2)),  # dcgan28
    ((8, 6), 4, 2, (1, 1)),  # dcgan, down
    ((16, 20), 16, 4, (6, 6)),  # dcgan128, image
    ((11, 7), 2, 2, (0, 0)),  # one row is not covered
    ((9, 5), 1, 2, (0, 0)),  # kernel smaller than the stride
    ((8, 11), 5, 3, (2, 0)),
    ((7, 10), 4, 3, (3, 1)),
    ((11, 14), 3, 4, (1, 0)),
]
IDENTIFIERS = [f"{h}x{w}_k{k}s{s}p{lo}{hi}" for (h, w), k, s, (lo, hi) in CASES]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES[7:]]  # shapes that no network has
cases = pytest.mark.parametrize("size, kernel, stride, padding", CASES[:7] + SLOW, ids=IDENTIFIERS)
# One of each kind for the slower tests.
FEW = [((6, 7), 4, 1, (1, 2)), ((7, 8), 5, 2, (1, 2)), ((10, 7), 2, 3, (0, 1)), ((13, 9), 5, 4, (0, 3))]
few = pytest.mark.parametrize("size, kernel, stride, padding", FEW)


@pytest.fixture(autouse=True)
def full_precision():
    """GPUs round float32 products to TF32 by default."""
    with jax.default_matmul_precision("highest"):
        yield


def arrays(size, kernel, stride, padding, dtype=np.float64, batch=2, inputs=2, outputs=3):
    """Return random images, kernel and features."""
    rng = np.random.default_rng([*size, kernel, stride, *padding])
    features = [out_size(rows, kernel, stride, padding) for rows in size]
    x = rng.standard_normal((batch, *size, inputs))
    w = rng.standard_normal((kernel, kernel, inputs, outputs))
    g = rng.standard_normal((batch, *features, outputs))
    return tuple(jnp.asarray(a, dtype) for a in (x, w, g))


def maps(size, kernel, stride, padding):
    """Return the three maps as functions of two arrays: ours, and those of `lax` with automatic differentiation."""
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
    """Return the squared gradient in `a` of a nonlinear function, as gradient penalties need it of a layer."""
    return jnp.sum(jax.grad(lambda a: jnp.sum(jnp.tanh(function(a, b))))(a) ** 2)


def assert_close(ours, theirs, tolerance):
    """Assert equal shapes and dtypes, and values equal up to `tolerance` times the largest value."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-30))


@functools.cache
def values_and_gradients(which, *case):
    """Return (value, both gradients) of each of the three maps in float64: ours (0) or those of `lax` (1)."""
    with jax.enable_x64(True):
        x, w, g = arrays(*case)
        at = ((x, w, g), (g, w, x), (x, g, w))  # two arguments and a cotangent
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


# (height, width), kernel, stride, padding, inputs, outputs -> the three maps on a CPU
FORMS = {
    "winograd": (((8, 6), 4, 2, (1, 1), 5, 6), (winograd.conv, winograd.conv_input, winograd.conv_kernel)),
    "winograd, stride 1": (((7, 9), 5, 1, (2, 2), 5, 6), (winograd.conv, winograd.conv_input, winograd.conv_kernel)),
    "winograd, kernel only": (((8, 8), 3, 2, (0, 1), 5, 6), (None, None, winograd.conv_kernel)),
    "im2col": (
        ((9, 8), 5, 2, (1, 2), 3, 6),
        ("Im2col.conv", "Im2col.conv_input", "Im2col.conv_kernel"),
    ),
    "kn2row": (
        ((9, 8), 8, 1, (3, 4), 5, 3),
        ("Kn2row.conv", "Kn2row.conv_input", "Kn2row.conv_kernel"),
    ),
    "dense": (((4, 4), 4, 1, (0, 0), 5, 6), (columns.dense_conv, columns.dense_conv_input, columns.dense_conv_kernel)),
    "native": (((9, 5), 1, 2, (0, 0), 5, 6), (None, None, None)),
}
forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_the_lowering_of_each_layer_on_a_cpu(form):
    (size, kernel, stride, padding, inputs, outputs), expected = FORMS[form]
    lowered = ConvSpec(kernel, stride, padding, size, "platform").cpu_maps(inputs, outputs)
    for found, wanted in zip(lowered, expected, strict=True):
        found = getattr(found, "func", found)  # of a partial
        assert found is wanted if not isinstance(wanted, str) else found.__qualname__ == wanted


@forms
@pytest.mark.parametrize("batch, parts", [(1, 1), (6, 3)])
def test_every_lowering_equals_the_native_one(form, batch, parts, monkeypatch):
    """Values and both gradients in float64; also with the batch in parts."""
    monkeypatch.setattr(blocking, "num_parts", lambda *_: parts)
    monkeypatch.setattr(winograd, "num_parts", lambda *_: parts)
    monkeypatch.setattr(columns, "num_parts", lambda *_: parts)
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
    [*((form, "cpu") for form in FORMS if form != "native"), ("im2col", "cuda"), ("dense", "cuda")],
)
def test_second_derivatives_of_every_lowering_are_the_native_ones(form, platform, monkeypatch):
    """In both arguments, in float64, with the batch in parts, as gradient penalties need them. The lowerings of a GPU
    run on the CPU."""
    for module in (blocking, winograd, columns):
        monkeypatch.setattr(module, "num_parts", lambda *_: 3)
    if platform == "cuda":
        monkeypatch.setattr(ConvSpec, "cpu_maps", lambda spec, inputs, outputs: spec.cuda_maps(inputs))
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


# The same -> the function of `pixel_blocks` or `columns` on an NVIDIA GPU; None: native
CUDA_FORMS = {
    "images of few channels": (((16, 20), 16, 4, (6, 6), 3, 6), "strided"),
    "uneven": (((9, 8), 5, 2, (1, 2), 1, 6), "strided"),
    "rows that are not covered": (((11, 7), 3, 2, (0, 1), 4, 6), "strided"),
    "kernel smaller than the stride": (((11, 14), 3, 4, (1, 0), 3, 5), "strided"),
    "dense": (((4, 4), 4, 1, (0, 0), 5, 6), "dense_conv"),
    "many channels": (((8, 6), 4, 2, (1, 1), 5, 6), None),
    "stride 1": (((9, 8), 8, 1, (3, 4), 5, 3), None),
    "one tap": (((9, 5), 1, 2, (0, 0), 3, 6), None),
}


@pytest.mark.parametrize("form", CUDA_FORMS)
def test_every_lowering_of_a_gpu_equals_the_native_one(form, monkeypatch):
    """In float64, on the CPU."""
    (size, kernel, stride, padding, inputs, outputs), expected = CUDA_FORMS[form]
    called = []
    for module, name in ((pixel_blocks, "strided"), (columns, "dense_conv")):
        wrapped = lambda *args, name=name, real=getattr(module, name): called.append(name) or real(*args)
        monkeypatch.setattr(module, name, wrapped)
    spec = ConvSpec(kernel, stride, padding, size, "platform")
    with jax.enable_x64(True):
        x, w, g = arrays(size, kernel, stride, padding, inputs=inputs, outputs=outputs)
        for ours, theirs, two in zip(spec.cuda_maps(inputs), spec.native_maps(), ((x, w), (g, w), (x, g)), strict=True):
            assert (ours is None) == (expected is None)
            if ours is not None:
                assert_close(jax.jit(ours)(*two), jax.jit(theirs)(*two), 1e-12)
    assert called[0] == expected if expected else not called


@given(
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 4),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    batch=st.integers(1, 3),
)
@pytest.mark.slow  # 25 shapes to compile
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
def test_minimal_filtering_is_cross_correlation(m, r):
    """y = A^T [(G w) * (B^T x)] against NumPy."""
    a, g, b = winograd.matrices(m, r)
    rng = np.random.default_rng(m * 10 + r)
    x, w = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), np.correlate(x, w, "valid"), atol=1e-13)


def test_an_unknown_lowering_is_refused():
    with pytest.raises(ValueError, match="fastest"), lowering("fastest"):
        pass


def test_the_native_lowering_uses_no_other(monkeypatch):
    def fail(*_):
        raise AssertionError("not native")

    monkeypatch.setattr(winograd, "conv", fail)
    x, w, _ = arrays((8, 8), 4, 2, (1, 1), np.float32, inputs=8, outputs=8)
    with lowering("native"):
        assert jax.eval_shape(lambda x, w: conv(x, w, 2, (1, 1)), x, w).shape == (2, 4, 4, 8)
    with pytest.raises(AssertionError, match="not native"):
        jax.eval_shape(lambda x, w: conv(x, w, 2, (1, 1)), x, w)


@functools.partial(jax.jit, static_argnums=(0, 1))
def values(which, case, x, w, g):
    """Return the values of the three maps: ours (0) or those of `lax` (1)."""
    return [f(*two) for f, two in zip(maps(*case)[which], ((x, w), (g, w), (x, g)), strict=True)]


@few
def test_float32_is_equal_up_to_rounding(size, kernel, stride, padding):
    case = size, kernel, stride, padding
    given = arrays(*case, np.float32)
    assert_close(values(0, case, *given), values(1, case, *given), 2e-5)  # the bound stated in `winograd`


@few
def test_bfloat16_is_equal_up_to_rounding(size, kernel, stride, padding):
    """Eight bits: half a unit in the last place for the result, as much again for partial sums."""
    case = size, kernel, stride, padding
    given = arrays(*case, jnp.bfloat16)
    ours = values(0, case, *given)
    assert all(a.dtype == jnp.bfloat16 for a in ours)
    wide = [a.astype(jnp.float32) for a in given]
    assert_close([a.astype(jnp.float32) for a in ours], values(1, case, *wide), 2**-8)


def test_gradients_per_example():
    """`vmap` of `grad`, as used by penalties per example."""
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
