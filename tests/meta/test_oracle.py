"""The oracle is itself tested: with exact arithmetic, with ml_dtypes, and with cases made by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grl.parity import strategies
from tests.support import oracle


@pytest.mark.parametrize("dtype", oracle.REAL)
def test_bits_survive_decoding_and_encoding(dtype: str) -> None:
    patterns = np.array(strategies.special_bits(dtype), dtype=oracle.UNSIGNED[dtype])
    assert oracle.same_bits(oracle.encode(oracle.decode(patterns, dtype), dtype), patterns, dtype).all()


@given(bits=strategies.arrays("float32", (8,)))
def test_bfloat16_rounds_as_in_ml_dtypes(bits: np.ndarray) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        expected = bits.view(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert oracle.same_bits(oracle.encode(bits.view(np.float32), "bfloat16"), expected, "bfloat16").all()


@given(data=st.data())
def test_gradient_is_the_number_nearest_to_the_exact_product(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    bits, factor = data.draw(strategies.arrays(dtype, ())), data.draw(strategies.arrays(dtype, ()))
    g, coeff = oracle.decode(bits, dtype), oracle.decode(factor, dtype)
    result = oracle.decode(oracle.backward(bits, dtype, np.float64(coeff)), dtype)
    assume(np.isfinite(g) and np.isfinite(coeff) and np.isfinite(result))
    exact = -Fraction(float(g)) * Fraction(float(coeff))
    error = abs(Fraction(float(result)) - exact)
    largest = np.finfo(dtype).max
    for neighbour in (np.nextafter(result, -largest), np.nextafter(result, largest)):
        assert error <= abs(Fraction(float(neighbour)) - exact)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_product_is_taken_in_float32(dtype: str) -> None:
    # λ = 0.1 is another number in float16 and in bfloat16, so that a 16-bit product differs for many g.
    bits = strategies.every_pattern(dtype)
    rounded = oracle.decode(oracle.encode(np.array(0.1, np.float32), dtype), dtype)
    early = oracle.backward(bits, dtype, float(rounded))
    differ = ~oracle.same_bits(oracle.backward(bits, dtype, 0.1), early, dtype)
    assert differ.mean() > 0.15


@pytest.mark.parametrize(("coeff", "negative"), [(1.0, [True, False]), (-1.0, [False, True]), (0.0, [True, False])])
def test_signs_of_zero(coeff: float, negative: list[bool]) -> None:
    zeros = np.array([0.0, -0.0], np.float32).view(np.uint32)
    assert np.signbit(oracle.decode(oracle.backward(zeros, "float32", coeff), "float32")).tolist() == negative


def test_zero_times_infinity_is_nan() -> None:
    infinity = np.array([np.inf], np.float32).view(np.uint32)
    assert oracle.is_nan(oracle.backward(infinity, "float32", 0.0), "float32").all()


def test_complex_is_scaled_by_halves() -> None:
    # A complex multiplication by −λ + 0j would give NaN in the imaginary half.
    bits = np.array([[np.inf, 1.0]], np.float32).view(np.uint32)
    assert oracle.decode(oracle.backward(bits, "complex64", 2.0), "float32").tolist() == [[-np.inf, -2.0]]


def test_flush_makes_subnormal_operands_and_results_zero() -> None:
    tiny = np.finfo(np.float32).tiny
    g = np.array([tiny / 2, -tiny / 2, tiny, -tiny, tiny], np.float32)
    coeff = np.array([1e10, 1e10, 0.5, 0.5, 1.0])
    flushed = oracle.decode(oracle.backward(g.view(np.uint32), "float32", coeff, flush=True), "float32")
    assert flushed.tolist() == [0.0, 0.0, 0.0, 0.0, -tiny]
    assert np.signbit(flushed).tolist() == [True, False, True, False, True]


def test_flush_judges_a_result_before_subnormal_rounding() -> None:
    # (1 − 2⁻²⁴)·2⁻¹²⁶ is tiny, though IEEE rounds it up to the smallest normal number; (1 − 2⁻²⁵)·2⁻¹²⁶ is not.
    g = np.array([2.0**-63 * (1 - 2.0**-24)], np.float32).view(np.uint32)
    assert oracle.decode(oracle.backward(g, "float32", 2.0**-63), "float32") == -np.finfo(np.float32).tiny
    assert oracle.decode(oracle.backward(g, "float32", 2.0**-63, flush=True), "float32") == 0.0
    a = 1 - 2.0**-12  # (1 − 2⁻¹²)·(1 + 2⁻¹²) = 1 − 2⁻²⁴; one bit closer to 1 does not fit into float32
    g = np.array([2.0**-63 * a], np.float32).view(np.uint32)
    assert oracle.decode(oracle.backward(g, "float32", 2.0**-63 * (1 + 2.0**-12), flush=True), "float32") == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_flush_differs_from_ieee_only_at_subnormals(dtype: str, data: st.DataObject) -> None:
    bits = data.draw(strategies.arrays(dtype, (16,)))
    coeff = data.draw(strategies.numbers())
    kept, flushed = (oracle.backward(bits, dtype, coeff, flush=flush) for flush in (False, True))
    with np.errstate(all="ignore"):
        operands = np.abs(np.stack([oracle.decode(bits, dtype), np.full(16, coeff, dtype=dtype)]))
    results = np.abs(oracle.decode(kept, dtype))
    tiny = np.finfo(dtype).tiny
    normal = ~((operands > 0) & (operands < tiny)).any(axis=0) & ~((results > 0) & (results <= tiny))
    assert oracle.same_bits(kept, flushed, dtype)[normal].all()
