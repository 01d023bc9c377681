"""Bits of NumPy, PyTorch and JAX compare alike; the distance in ULP counts the floats in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grl.bits import COMPLEX, REAL, UNSIGNED, array_of, bits_of, decode, tensor_of
from grl.parity import assert_same_bits, strategies, ulp_distance
from tests.support.installed import HAS_JAX, HAS_TORCH

DTYPES = (*REAL, *COMPLEX)


def numpy_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    values = bits.view(dtype if dtype in REAL else COMPLEX[dtype])
    return values if dtype in REAL else values.view(dtype)[..., 0]


def jax_of(bits: np.ndarray, dtype: str) -> Any:
    import jax

    with jax.enable_x64(True):
        return array_of(bits, dtype)


MAKERS = [numpy_of, *([tensor_of] if HAS_TORCH else []), *([jax_of] if HAS_JAX else [])]


@pytest.mark.parametrize("make", MAKERS)
@given(data=st.data())
def test_an_array_has_the_bits_it_was_made_of(make: Callable[..., Any], data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([name for name in DTYPES if make is not numpy_of or name != "bfloat16"]))
    bits = data.draw(strategies.arrays(dtype, data.draw(strategies.shapes())))
    array = make(bits, dtype)
    np.testing.assert_array_equal(bits_of(array), bits)
    assert_same_bits(array, array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_libraries_may_be_mixed(dtype: str) -> None:
    bits = np.arange(2 * 3 * 2, dtype=UNSIGNED[COMPLEX.get(dtype, dtype)]).reshape(2, 3, 2)
    arrays = [make(bits, dtype) for make in MAKERS if not (make is numpy_of and dtype == "bfloat16")]
    for other in arrays:
        assert_same_bits(arrays[0], other)
        assert ulp_distance(arrays[0], other).max() == 0


def test_zeros_differ_by_their_sign_and_all_nan_are_alike() -> None:
    with pytest.raises(AssertionError, match=r"1 of 2 numbers of float32 differ: at \(0,\) got 0.0 \(0x00000000\)"):
        assert_same_bits(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0]))
    payload = np.uint32([0x7FC00001, 0xFFC00000]).view(np.float32)
    assert_same_bits(np.full(2, np.nan, np.float32), payload)
    with pytest.raises(AssertionError, match="1 of 4 halves of complex64 differ"):
        assert_same_bits(np.complex64([1, 2]), np.complex64([1, 2 + 1e-9j]))


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (np.float32([1]), np.float64([1]), "got float32, expected float64"),
        (np.float32([1]), np.float32([[1]]), r"got the shape \(1,\), expected \(1, 1\)"),
    ],
)
def test_dtype_and_shape_count(actual: Any, expected: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_same_bits(actual, expected)
    with pytest.raises((TypeError, ValueError), match="expected"):
        ulp_distance(actual, expected)


def test_only_floats_have_such_a_distance() -> None:
    with pytest.raises(TypeError, match="got int64; expected an array of float16, bfloat16, float32"):
        ulp_distance(np.int64([1]), np.int64([1]))


@given(data=st.data())
def test_distance_counts_the_steps(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64"]))
    start = numpy_of(data.draw(strategies.arrays(dtype, ())), dtype)[()]
    steps = data.draw(st.integers(0, 20))
    end = start
    for _ in range(steps):
        end = np.nextafter(end, np.dtype(dtype).type(np.inf))
    if math.isfinite(start) and math.isfinite(end):
        assert ulp_distance(start, end) == ulp_distance(end, start) == steps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_distance_of_16_bits_is_that_of_the_order_of_all_values(dtype: str) -> None:
    bits = strategies.every_pattern(dtype)
    values = decode(bits, dtype).astype(np.float64)
    order = np.unique(values[np.isfinite(values)])
    ranks = np.searchsorted(order, values[np.isfinite(values)])
    finite = bits[np.isfinite(values)]
    shuffled = np.random.default_rng(0).permutation(len(finite))
    make = tensor_of if HAS_TORCH else array_of
    expected = np.abs(ranks - ranks[shuffled])
    np.testing.assert_array_equal(ulp_distance(make(finite, dtype), make(finite[shuffled], dtype)), expected)


def test_ends_of_the_range() -> None:
    largest = np.finfo(np.float64).max
    found = ulp_distance(
        np.float64([largest, -largest, np.nan, np.nan, 0.0]), np.float64([np.inf, largest, 1.0, np.nan, -0.0])
    )
    bits = int(np.float64(largest).view(np.uint64))
    assert found.tolist() == [1, 2 * bits, 2**64 - 1, 0, 0]
    assert ulp_distance(np.complex64([1 + 2j]), np.complex64([1 + 2.0000002j])).tolist() == [1]
