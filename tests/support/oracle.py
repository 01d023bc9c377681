"""What a gradient reversal layer must return, in NumPy alone: the backward rule g ↦ round(−λ·g), bit by bit.

Floating-point arrays are handled as unsigned integers of the same width ("bits"), so that the oracle knows bfloat16
without any framework, and so that −0, NaN and subnormals compare as what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grl.bits import COMPLEX, REAL, UNSIGNED, decode, encode, is_nan, same_bits

__all__ = [
    "COMPLEX",
    "PRECISION",
    "REAL",
    "UNSIGNED",
    "backward",
    "decode",
    "encode",
    "flush_subnormals",
    "is_nan",
    "same_bits",
]

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
