"""λ in JAX: the types it may have, and the form in which it multiplies a gradient."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from grl.coefficient import aligned_shape, finite_number, own_array, require_real

__all__ = ["Coefficient", "aligned_coefficient", "as_coefficient", "scale"]

Coefficient: TypeAlias = float | np.floating[Any] | np.integer[Any] | NDArray[Any] | Array
"""λ: a real number, an array of one element, one value per sample (N,), or one per element of x."""


def as_coefficient(coeff: object) -> np.float64 | Array:
    """Return λ as a number of 64 bits or as a real array.

    Args:
        coeff: λ as the user wrote it.

    Raises:
        TypeError: λ is a bool, a string, None or complex.
        ValueError: λ is a number that is not finite.
    """
    if isinstance(coeff, np.ndarray):  # JAX may still read the caller's memory after the call: NumPy makes the copy
        coeff = own_array(coeff)
        with np.errstate(over="ignore"):  # a λ that float32 cannot hold is infinite there, as it is in PyTorch
            return jnp.asarray(coeff)
    if isinstance(coeff, Array):
        is_real = jnp.issubdtype(coeff.dtype, jnp.integer) or jnp.issubdtype(coeff.dtype, jnp.floating)
        require_real(coeff.dtype, is_real=is_real)
        return coeff
    return np.float64(finite_number(coeff))  # 64 bits until JAX makes it an array of the precision in force


def aligned_coefficient(x: Array, coeff: np.float64 | Array) -> Array:
    """Return λ as an array of the shape in which it multiplies a gradient of x."""
    shape = aligned_shape(jnp.shape(coeff), x.shape)
    with np.errstate(over="ignore"):  # a λ that float32 cannot hold is infinite there, as it is in PyTorch
        return jnp.asarray(coeff).reshape(shape)


def scale(array: Array, coeff: Array) -> Array:
    """Return −λ·t with one rounding: in float32 for floats of 16 bits or fewer, in t's own precision otherwise."""
    if jnp.iscomplexobj(array):  # λ is real: a complex multiply would turn inf·0 into NaN
        return lax.complex(scale(array.real, coeff), scale(array.imag, coeff))
    precision = jnp.float32 if array.dtype.itemsize < 4 else array.dtype
    factor = -lax.stop_gradient(coeff).astype(precision)
    return (array.astype(precision) * factor).astype(array.dtype)
