"""The inputs of every transformation, and the comparison of a result with the declared Jacobian."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from grl.arrays import Array
from grl.check.form import WrongError

__all__ = ["BITS", "COEFF", "FIRST", "SECOND", "WEIGHTS", "X", "same", "same_bits"]

COEFF = 0.37  # has no short binary form: rounding λ changes the result
X = np.linspace(-1.3, 1.1, 12, dtype=np.float32).reshape(4, 3)
WEIGHTS = np.linspace(0.5, 2.0, 12, dtype=np.float32).reshape(4, 3)
FIRST = WEIGHTS * np.cos(X)  # derivatives of the loss Σ w·sin(y) with respect to y, at y = x
SECOND = -WEIGHTS * np.sin(X)
# −0, ±inf, a subnormal and NaN with a payload: x + 0 or x · 1 would not preserve all of them.
BITS = np.array([0x80000000, 0x7F800000, 0xFF800000, 0x00000001, 0x7FC01234, 0xFFC00001], np.uint32)


def same(got: ArrayLike, expected: ArrayLike, what: str = "gradient", tolerance: float = 1e-5) -> None:
    """Raise `WrongError` unless two arrays agree in shape and values.

    Args:
        got: the result.
        expected: the correct values.
        what: the name of the result, for the message.
        tolerance: the largest difference allowed, relative to the largest expected value.
    """
    kind = np.complex128 if np.iscomplexobj(expected) else np.float64
    got, expected = np.asarray(got, kind), np.asarray(expected, kind)
    if got.shape != expected.shape:
        raise WrongError(f"{what}: expected shape {expected.shape}, got {got.shape}")
    difference = np.abs(got - expected)
    if not np.all(difference <= tolerance * np.abs(expected).max(initial=0)):  # a NaN never matches
        worst = np.unravel_index(np.argmax(difference), got.shape)
        cut = "" if got.any() else " everywhere, as where x is cut off"
        raise WrongError(f"{what}: expected {expected[worst]:.9g}, got {got[worst]:.9g}{cut}")


def same_bits(got: Array, what: str = "value") -> None:
    """Raise `WrongError` unless float32 values are those of `BITS`, bit for bit."""
    found = np.ascontiguousarray(got).view(np.uint32)
    for expected, bits in zip(BITS.tolist(), found.tolist(), strict=True):
        if expected != bits:
            raise WrongError(f"{what}: expected the bits {expected:#010x}, got {bits:#010x}")
