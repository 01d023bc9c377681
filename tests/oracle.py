"""What a gradient reversal layer must return, in NumPy alone: the backward rule g ↦ round(−λ·g), bit by bit.

Floating-point arrays are handled as unsigned integers of the same width ("bits"), so that the oracle knows bfloat16
without any framework, and so that −0, NaN and subnormals compare as what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

UNSIGNED = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
REAL = tuple(UNSIGNED)
COMPLEX = {"complex64": "float32", "complex128": "float64"}  # and the dtype of its two halves
# The precision in which the product is taken.
PRECISION = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}


def backward(bits: np.ndarray, dtype: str, coeff: Any, *, flush: bool = False) -> np.ndarray:
    """Return the bits of round(−λ·g), one multiply and one rounding.

    Args:
        bits: g, any shape; for a complex dtype with a last axis of size 2, real and imaginary halves.
        dtype: what the bits are: float16, bfloat16, float32, float64, complex64 or complex128.
        coeff: λ, a number or an array that broadcasts against g without enlarging it.
        flush: whether subnormal operands and results become zeros of the same sign, as XLA has it on an x86 CPU.

    Returns:
        The bits of the gradient of x, in the shape of `bits`.
    """
    if dtype in COMPLEX:
        halves = [backward(bits[..., i], COMPLEX[dtype], coeff, flush=flush) for i in (0, 1)]
        return np.stack(halves, axis=-1)
    precision = PRECISION[dtype]
    with np.errstate(all="ignore"):
        factor = -np.asarray(coeff, dtype=np.float64).astype(precision)
        return encode(_multiply(decode(bits, dtype).astype(precision), factor, flush), dtype)


def decode(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values of these bits; bfloat16 as float32, which holds each of its values."""
    bits = np.asarray(bits, dtype=UNSIGNED[dtype])
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(dtype)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of these values, rounded to the nearest of `dtype`, ties to the even one."""
    if dtype != "bfloat16":
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(dtype).view(UNSIGNED[dtype])
    wide = np.asarray(values, dtype=np.float32).view(np.uint32)
    # Half of what is cut off, less one, plus one where the kept part is odd: the carry is the rounding.
    rounded = (wide.astype(np.uint64) + 0x7FFF + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def same_bits(actual: np.ndarray, expected: np.ndarray, dtype: str) -> np.ndarray:
    """Element by element: the same bits, or both NaN (a NaN's sign and payload are the hardware's own)."""
    return (actual == expected) | (is_nan(actual, dtype) & is_nan(expected, dtype))


def is_nan(bits: np.ndarray, dtype: str) -> np.ndarray:
    return np.isnan(decode(bits, COMPLEX.get(dtype, dtype)))


def flush_subnormals(values: np.ndarray) -> np.ndarray:
    """Subnormals become zeros of the same sign."""
    return np.where(np.abs(values) < np.finfo(values.dtype).tiny, np.copysign(values.dtype.type(0), values), values)


def _multiply(values: np.ndarray, factor: np.ndarray, flush: bool) -> np.ndarray:
    product = values * factor
    if not flush:
        return product
    values, factor = flush_subnormals(values), flush_subnormals(factor)
    product = values * factor
    # x86 calls a result tiny by its size after rounding to full precision. The largest subnormals that IEEE rounds up
    # to the smallest normal number are therefore flushed as well, which the product itself no longer shows.
    (a, i), (b, j) = np.frexp(values), np.frexp(factor)
    mantissa, k = np.frexp(a * b)
    tiny = np.isfinite(product) & (mantissa != 0) & (k + i + j - 1 < np.finfo(product.dtype).minexp)
    return np.where(tiny, np.copysign(product.dtype.type(0), product), product)
