"""The one rule that says what a coefficient λ may be. Both backends call it; it knows neither framework."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from grl.arrays import Array

__all__ = ["ACCEPTED", "aligned_shape", "finite_number", "own_array", "require_real"]

ACCEPTED = (
    "a finite real number, a real array of one element, one value per sample with shape (x.shape[0],), "
    "or one per element with x's number of dimensions, each size equal to x's or 1"
)
"""What λ may be, as error messages say it."""


def finite_number(value: object, name: str = "coeff", accepted: str = ACCEPTED) -> float:
    """Return a Python or NumPy real number as a 64-bit float.

    Args:
        value: the number to check.
        name: the argument that the error names.
        accepted: the values that are allowed, as the error says them.

    Returns:
        `float(value)`, finite.

    Raises:
        TypeError: `value` is a bool, a string, None, complex, or no number at all.
        ValueError: `value` is NaN, infinite, or too large for a 64-bit float.

    Example:
        >>> finite_number(np.float32(0.5))
        0.5
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}; expected {accepted}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {value!r}, which is not finite; expected {accepted}.")
    return number


def own_array(coeff: Array) -> Array:
    """Return a copy of a NumPy coefficient in a form that either framework takes. The caller may change the original.

    Args:
        coeff: real numbers of any dtype, byte order and strides.

    Returns:
        The same numbers, contiguous. Floats of up to 64 bits keep their dtype; all other numbers become 64-bit floats,
        infinite where they are too large for that.

    Raises:
        TypeError: the dtype is not real.

    Example:
        >>> own_array(np.arange(3, dtype=">i2")[::-1])
        array([2., 1., 0.])
    """
    dtype = coeff.dtype.newbyteorder("=")
    # bfloat16 and similar dtypes, which NumPy knows only by name, have the kind V.
    require_real(dtype, is_real=dtype.kind in "iuf" or (dtype.kind == "V" and np.can_cast(dtype, np.float64)))
    if dtype.kind != "f" or dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    with np.errstate(over="ignore"):
        return coeff.astype(dtype, order="C")


def require_real(dtype: object, *, is_real: bool) -> None:
    """Check the dtype of a coefficient array.

    Args:
        dtype: the dtype as the framework prints it, for the message.
        is_real: whether the framework calls the dtype an integer or a real float.

    Raises:
        TypeError: the dtype is bool, complex, or no number.
    """
    if not is_real:
        raise TypeError(f"coeff: got an array of dtype {dtype}, which is not real; expected {ACCEPTED}.")


def aligned_shape(coeff_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which a coefficient array multiplies a gradient of shape `x_shape`.

    Silent broadcasting would read a per-sample λ along the last axis. Here every shape has one meaning, or it raises.

    Args:
        coeff_shape: the shape of the coefficient array: one element, `(N,)`, or as many dimensions as `x_shape`.
        x_shape: the shape `(N, ...)` of the layer's input.

    Returns:
        A shape with the same number of elements that broadcasts against `x_shape` to exactly `x_shape`.

    Raises:
        ValueError: the coefficient is neither a scalar, nor per sample, nor per element. Both shapes are named.

    Example:
        >>> aligned_shape((8,), (8, 3, 32, 32))
        (8, 1, 1, 1)
    """
    if math.prod(coeff_shape) == 1:
        return ()
    if len(coeff_shape) == len(x_shape) and all(c in (1, n) for c, n in zip(coeff_shape, x_shape, strict=True)):
        return coeff_shape
    if len(x_shape) >= 2 and coeff_shape == x_shape[:1]:
        return coeff_shape + (1,) * (len(x_shape) - 1)
    raise ValueError(
        f"coeff: got shape {tuple(coeff_shape)} for x of shape {tuple(x_shape)}; expected {ACCEPTED}. "
        "Nothing is broadcast silently."
    )
