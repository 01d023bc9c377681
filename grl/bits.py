"""Comparison of floating-point arrays bit by bit, for NumPy, PyTorch and JAX.

The bits of an array are unsigned integers of the same width. Thus bfloat16 needs no framework, and −0, NaN and
subnormals stay distinct. Importing this module imports no framework.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np

from grl.arrays import Array

if TYPE_CHECKING:
    import jax
    import torch

__all__ = [
    "COMPLEX",
    "REAL",
    "UNSIGNED",
    "array_of",
    "assert_same_bits",
    "bits_of",
    "decode",
    "dtype_of",
    "encode",
    "is_nan",
    "same_bits",
    "tensor_of",
    "ulp_distance",
]

FloatArray: TypeAlias = "Array | np.generic | torch.Tensor | jax.Array"
"""An array or a scalar of any of the three libraries."""

UNSIGNED: dict[str, type[np.uint16 | np.uint32 | np.uint64]] = {
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
}
REAL = tuple(UNSIGNED)
COMPLEX = {"complex64": "float32", "complex128": "float64"}
"""Complex dtype → the dtype of its two halves."""


def assert_same_bits(actual: FloatArray, expected: FloatArray) -> None:
    """Raise unless two arrays have the same dtype, shape and bits. For use in your own tests.

    +0 and −0 differ. All NaNs are equal, because their sign and payload depend on the hardware.

    Args:
        actual: a NumPy array, a torch tensor or a JAX array of float16, bfloat16, float32, float64 or complex numbers.
        expected: an array of any of the three libraries.

    Raises:
        AssertionError: they differ. The message counts the numbers and shows the first three with their bits.
        TypeError: an array has another dtype.

    Example:
        >>> assert_same_bits(np.float32([0.0]), np.float32([-0.0]))
        Traceback (most recent call last):
        AssertionError: 1 of 1 numbers of float32 differ: at (0,) got 0.0 (0x00000000), expected -0.0 (0x80000000).
    """
    dtype, expected_dtype = dtype_of(actual), dtype_of(expected)
    assert dtype == expected_dtype, f"got {dtype}, expected {expected_dtype}."
    actual_bits, expected_bits = bits_of(actual), bits_of(expected)
    assert actual_bits.shape == expected_bits.shape, f"got the shape {np.shape(actual)}, expected {np.shape(expected)}."
    wrong = ~same_bits(actual_bits, expected_bits, dtype)
    if wrong.any():
        real = COMPLEX.get(dtype, dtype)
        places = np.argwhere(wrong)
        shown = "; ".join(
            f"at {tuple(map(int, place))} got {_shown(actual_bits[tuple(place)], real)}"
            f", expected {_shown(expected_bits[tuple(place)], real)}"
            for place in places[:3]
        )
        count = f"{len(places)} of {wrong.size} {'halves' if dtype in COMPLEX else 'numbers'} of {dtype} differ"
        raise AssertionError(f"{count}: {shown}{'; …' if len(places) > 3 else '.'}")


def ulp_distance(actual: FloatArray, expected: FloatArray) -> Array:
    """Return how many steps from one float to the next lie between two arrays, element by element.

    +0 and −0 are the same number: 0. Infinity is one step beyond the largest number. Two NaNs have the distance 0, and
    NaN and a number 2**64 − 1. The distance of complex numbers is that of the worse of their halves.

    Args:
        actual: as for `assert_same_bits`.
        expected: an array of the same dtype and shape.

    Returns:
        uint64 integers in the shape of the arrays.

    Raises:
        TypeError: the dtypes differ, or are not floating-point or complex.
        ValueError: the shapes differ.

    Example:
        >>> ulp_distance(np.float32([1.0, 0.0]), np.float32([1.0 + 2.0**-22, -0.0]))
        array([2, 0], dtype=uint64)
    """
    dtype, expected_dtype = dtype_of(actual), dtype_of(expected)
    if dtype != expected_dtype:
        raise TypeError(f"expected: got {expected_dtype}; expected the dtype of actual, {dtype}.")
    actual_bits, expected_bits = bits_of(actual), bits_of(expected)
    if actual_bits.shape != expected_bits.shape:
        raise ValueError(f"expected: got the shape {np.shape(expected)}; expected {np.shape(actual)}.")
    sign = actual_bits.dtype.type(1 << (8 * actual_bits.itemsize - 1))
    sizes = [(bits & ~sign).astype(np.uint64) for bits in (actual_bits, expected_bits)]
    apart = np.maximum(*sizes) - np.minimum(*sizes)
    distance: Array = np.where((actual_bits & sign) == (expected_bits & sign), apart, sizes[0] + sizes[1])
    nans = [is_nan(bits, dtype) for bits in (actual_bits, expected_bits)]
    distance = np.where(nans[0] | nans[1], np.iinfo(np.uint64).max, distance)
    distance = np.where(nans[0] & nans[1], np.uint64(0), distance)
    return distance.max(-1) if dtype in COMPLEX else distance


def dtype_of(array: object) -> str:
    """Return the name of an array's dtype, which is the same in all three libraries.

    Raises:
        TypeError: the dtype is not in `UNSIGNED` or `COMPLEX`.
    """
    name = str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
    if name not in UNSIGNED and name not in COMPLEX:
        raise TypeError(f"got {name}; expected an array of {', '.join([*UNSIGNED, *COMPLEX])}.")
    return name


def bits_of(array: FloatArray) -> Array:
    """Return the bits of an array, in its shape. A complex array gets a last axis of size 2 for its two halves.

    Args:
        array: a NumPy array, a torch tensor or a JAX array.

    Example:
        >>> bits_of(np.float32([1.0, -0.0])).tolist()
        [1065353216, 2147483648]
    """
    if _is_tensor(array):
        values = _signed(array)
    else:
        values = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes a 0-d array 1-d
        if np.iscomplexobj(values):
            values = np.stack([values.real, values.imag], axis=-1)
    bits: Array = values.view(f"u{values.itemsize}")
    return bits


def _is_tensor(array: FloatArray) -> TypeGuard[torch.Tensor]:
    torch = sys.modules.get("torch")  # a tensor exists only if PyTorch is imported
    return torch is not None and isinstance(array, torch.Tensor)


def _signed(tensor: torch.Tensor) -> Array:
    """Return the bits of a tensor as signed integers: PyTorch has no unsigned ones of every width."""
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    values: Array = tensor.cpu().contiguous().view(integer).numpy()
    return values


def tensor_of(bits: Array, dtype: str) -> torch.Tensor:
    """Return the torch tensor of these bits: the inverse of `bits_of`."""
    import torch

    if dtype in COMPLEX:
        return torch.from_numpy(np.array(bits).view(COMPLEX[dtype]).view(dtype).reshape(bits.shape[:-1]))
    return torch.from_numpy(np.array(bits).view(f"i{bits.itemsize}")).view(getattr(torch, dtype))


def array_of(bits: Array, dtype: str) -> jax.Array:
    """Return the JAX array of these bits: the inverse of `bits_of`. 64-bit dtypes need `jax.enable_x64`."""
    import jax.numpy as jnp

    real = COMPLEX.get(dtype, dtype)
    values = np.array(bits, dtype=UNSIGNED[real]).view(jnp.dtype(real))
    return jnp.asarray(values.view(dtype)[..., 0] if dtype in COMPLEX else values)


def decode(bits: Array, dtype: str) -> Array:
    """Return the values of these bits; bfloat16 as float32, which represents each of its values."""
    bits = np.asarray(bits, dtype=UNSIGNED[dtype])
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(dtype)


def encode(values: Array, dtype: str) -> Array:
    """Return the bits of these values, rounded to the nearest value of `dtype`, ties to even."""
    if dtype != "bfloat16":
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(dtype).view(UNSIGNED[dtype])
    wide = np.asarray(values, dtype=np.float32).view(np.uint32)
    # Add half of the dropped bits' range, less one, plus one if the kept bits are odd: the carry does the rounding.
    rounded = (wide.astype(np.uint64) + 0x7FFF + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def same_bits(actual: Array, expected: Array, dtype: str) -> Array:
    """Return, element by element, whether bits are equal, or both NaN (sign and payload depend on the hardware)."""
    same: Array = (actual == expected) | (is_nan(actual, dtype) & is_nan(expected, dtype))
    return same


def is_nan(bits: Array, dtype: str) -> Array:
    """Return, element by element, whether bits are NaN. A complex dtype is tested half by half."""
    nan: Array = np.isnan(decode(bits, COMPLEX.get(dtype, dtype)))
    return nan


def _shown(bits: np.unsignedinteger, dtype: str) -> str:
    return f"{decode(np.asarray(bits), dtype)!s} (0x{int(bits):0{2 * bits.itemsize}x})"
