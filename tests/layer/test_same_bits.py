"""All forms of both backends return the same bits: those of the NumPy oracle, eager and compiled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grl.parity import strategies
from tests.support import oracle
from tests.support.layer_forms import FORMS, FORWARD_MODE_FORMS, LayerForm, assert_reversed, reproduced_by

# λ that round differently in float16, bfloat16, float32 and float64, and both ends of the range.
COEFFICIENTS = (1.0, -1.0, 0.0, -0.0, 0.1, 0.3, 1 / 3, -0.7, 31.4, 1e-3, 1e-5, 1e30, -1e-30, 1e-40)


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(data=st.data())
def test_gradient_is_one_multiply_and_one_rounding(form: LayerForm, data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes(), "dtype")
    shape = data.draw(strategies.shapes(), "shape")
    x, g = (data.draw(strategies.arrays(dtype, shape), name) for name in ("x", "g"))
    coeff = data.draw(strategies.coefficients(shape), "coeff")
    with reproduced_by(form, dtype, x, g, coeff, "gradient"):
        assert_reversed(form, dtype, x, g, coeff, *form.gradient(x, g, dtype, coeff.native))


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(data=st.data())
def test_complex_gradient_is_scaled_by_halves(form: LayerForm, data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes(tuple(oracle.COMPLEX)), "dtype")
    shape = data.draw(strategies.shapes(), "shape")
    x, g = (data.draw(strategies.arrays(dtype, shape), name) for name in ("x", "g"))
    coeff = data.draw(strategies.coefficients(shape), "coeff")
    with reproduced_by(form, dtype, x, g, coeff, "gradient"):
        value, gradient = form.gradient(x, g, dtype, coeff.native)
        if form.name == "custom_jvp":  # documented: JAX transposes its rule into a sum, where −0 + 0 = 0
            zero = oracle.decode(gradient, oracle.COMPLEX[dtype]) == 0
            sign = form.expected(g, dtype, coeff.aligned(shape)) & gradient.dtype.type(1 << (8 * gradient.itemsize - 1))
            gradient = np.where(zero, sign, gradient)
        assert_reversed(form, dtype, x, g, coeff, value, gradient)


@pytest.mark.parametrize("form", FORWARD_MODE_FORMS, ids=str)
@given(data=st.data())
def test_tangent_has_the_bits_of_the_gradient(form: LayerForm, data: st.DataObject) -> None:
    dtype = data.draw(strategies.dtypes(), "dtype")
    shape = data.draw(strategies.shapes(), "shape")
    x, t = (data.draw(strategies.arrays(dtype, shape), name) for name in ("x", "t"))
    coeff = data.draw(strategies.coefficients(shape), "coeff")
    with reproduced_by(form, dtype, x, t, coeff, "tangent"):
        assert_reversed(form, dtype, x, t, coeff, *form.tangent(x, t, dtype, coeff.native))


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(data=st.data())
def test_compiled_gradient_has_the_bits_of_the_eager_one(form: LayerForm, data: st.DataObject) -> None:
    shape = (16, 4)  # fixed, so that compilation happens once
    xs = {dtype: data.draw(strategies.arrays(dtype, shape), f"x {dtype}") for dtype in oracle.REAL}
    gs = {dtype: data.draw(strategies.arrays(dtype, shape), f"g {dtype}") for dtype in oracle.REAL}
    coeff = data.draw(strategies.coefficients(shape, form.backend.COMPILED_KINDS, ("float64",)), "coeff")
    results = form.compiled_gradients(xs, gs, coeff.native)
    for dtype, result in results.items():
        with reproduced_by(form, dtype, xs[dtype], gs[dtype], coeff, "compiled"):
            assert_reversed(form, dtype, xs[dtype], gs[dtype], coeff, *result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_16_bit_gradient(form: LayerForm, dtype: str) -> None:
    bits = strategies.every_pattern(dtype)
    for value in COEFFICIENTS:
        coeff = strategies.Coefficient("float", np.float64(value))
        assert_reversed(form, dtype, bits, bits, coeff, *form.gradient(bits, bits, dtype, value))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@given(seed=st.integers(0, 2**32 - 1), coeff=strategies.coefficients((4096,), ("float", "0-d array")))
def test_many_random_gradients(form: LayerForm, dtype: str, seed: int, coeff: strategies.Coefficient) -> None:
    data = np.random.default_rng(seed).bytes(4096 * np.dtype(dtype).itemsize)
    bits = strategies.quieted(np.frombuffer(data, dtype=oracle.UNSIGNED[dtype]), dtype)
    assert_reversed(form, dtype, bits, bits, coeff, *form.gradient(bits, bits, dtype, coeff.native))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_subnormal_float32_coefficient_is_zero_where_xla_flushes(form: LayerForm) -> None:
    g = np.float64([[1e40, 1.0]]).view(np.uint64)
    coeff = np.float32([5e-39])
    _, gradient = form.gradient(g, g, "float64", coeff)
    taken = 0.0 if form.backend.FLUSHES else float(coeff[0])
    assert np.array_equal(gradient, oracle.backward(g, "float64", taken))
