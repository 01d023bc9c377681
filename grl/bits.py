"""Floating-point numbers bit by bit, of NumPy, PyTorch and JAX alike: for tests that allow no difference at all.

An array's bits are unsigned integers of the same width, so that bfloat16 needs no framework, and −0, NaN and subnormals
compare as what they are. Importing this imports no framework.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from grl.arrays import Array

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


UNSIGNED: dict[str, type[np.unsignedinteger[Any]]] = {
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
}
REAL = tuple(UNSIGNED)
COMPLEX = {"complex64": "float32", "complex128": "float64"}
"""Complex dtypes, and the dtype of their two halves."""


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Raise unless two arrays have the same dtype, shape and bits: a line for your own tests.

    +0 and −0 differ. Any NaN is the same as any other, since its sign and payload are the hardware's own.

    Args:
        actual: a NumPy array, a torch tensor or a JAX array of float16, bfloat16, float32, float64 or complex numbers.
        expected: the same, of any of the three.

    Raises:
        AssertionError: how many numbers differ, and which ones first, with their bits.
        TypeError: an array of something else.

    Example:
        >>> assert_same_bits(np.float32([0.0]), np.float32([-0.0]))
        Traceback (most recent call last):
        AssertionError: 1 of 1 numbers of float32 differ: at (0,) got 0.0 (0x00000000), expected -0.0 (0x80000000).
    """
    dtype, wanted = dtype_of(actual), dtype_of(expected)
    assert dtype == wanted, f"got {dtype}, expected {wanted}."
    ours, theirs = bits_of(actual), bits_of(expected)
    assert ours.shape == theirs.shape, f"got the shape {np.shape(actual)}, expected {np.shape(expected)}."
    wrong = ~same_bits(ours, theirs, dtype)
    if wrong.any():
        real = COMPLEX.get(dtype, dtype)
        places = np.argwhere(wrong)
        shown = "; ".join(
            f"at {tuple(map(int, place))} got {_shown(ours[tuple(place)], real)}"
            f", expected {_shown(theirs[tuple(place)], real)}"
            for place in places[:3]
        )
        count = f"{len(places)} of {wrong.size} {'halves' if dtype in COMPLEX else 'numbers'} of {dtype} differ"
        raise AssertionError(f"{count}: {shown}{'; …' if len(places) > 3 else '.'}")


def ulp_distance(actual: Any, expected: Any) -> Array:
    """Return how many steps from one float to the next lie between two arrays, element by element.

    +0 and −0 are the same number: 0. Infinity is one step beyond the largest number. Between two NaN it is 0, between
    NaN and a number 2**64 − 1. A complex number is as far off as the worse of its halves.

    Args:
        actual: as for `assert_same_bits`.
        expected: an array of the same dtype and shape.

    Returns:
        Integers of uint64 in the shape of the arrays.

    Raises:
        TypeError: the dtypes differ, or are no floats.
        ValueError: the shapes differ.

    Example:
        >>> ulp_distance(np.float32([1.0, 0.0]), np.float32([1.0 + 2.0**-22, -0.0]))
        array([2, 0], dtype=uint64)
    """
    dtype, wanted = dtype_of(actual), dtype_of(expected)
    if dtype != wanted:
        raise TypeError(f"expected: got {wanted}; expected the dtype of actual, {dtype}.")
    ours, theirs = bits_of(actual), bits_of(expected)
    if ours.shape != theirs.shape:
        raise ValueError(f"expected: got the shape {np.shape(expected)}; expected {np.shape(actual)}.")
    sign = ours.dtype.type(1 << (8 * ours.itemsize - 1))
    sizes = [(bits & ~sign).astype(np.uint64) for bits in (ours, theirs)]
    apart = np.maximum(*sizes) - np.minimum(*sizes)
    distance: Array = np.where((ours & sign) == (theirs & sign), apart, sizes[0] + sizes[1])
    nans = [is_nan(bits, dtype) for bits in (ours, theirs)]
    distance = np.where(nans[0] | nans[1], np.iinfo(np.uint64).max, distance)
    distance = np.where(nans[0] & nans[1], np.uint64(0), distance)
    return distance.max(-1) if dtype in COMPLEX else distance


def dtype_of(array: Any) -> str:
    """Return the name of an array's dtype, which is the same in all three libraries.

    Raises:
        TypeError: it is none of those that are known here.
    """
    name = str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
    if name not in UNSIGNED and name not in COMPLEX:
        raise TypeError(f"got {name}; expected an array of {', '.join([*UNSIGNED, *COMPLEX])}.")
    return name


def bits_of(array: Any) -> Array:
    """Return the bits of an array, in its shape; of a complex one with a last axis of size 2 for its two halves.

    Args:
        array: a NumPy array, a torch tensor or a JAX array.

    Example:
        >>> bits_of(np.float32([1.0, -0.0])).tolist()
        [1065353216, 2147483648]
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj().resolve_neg()
        array = torch.view_as_real(array) if array.is_complex() else array
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[array.element_size()]
        values = array.cpu().contiguous().view(integer).numpy()
    else:
        values = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray has no 0-d arrays
        if np.iscomplexobj(values):
            values = np.stack([values.real, values.imag], axis=-1)
    bits: Array = values.view(f"u{values.itemsize}")
    return bits


def tensor_of(bits: Array, dtype: str) -> Any:
    """Return the torch tensor of these bits: the inverse of `bits_of`."""
    import torch

    if dtype in COMPLEX:
        return torch.from_numpy(np.array(bits).view(COMPLEX[dtype]).view(dtype).reshape(bits.shape[:-1]))
    return torch.from_numpy(np.array(bits).view(f"i{bits.itemsize}")).view(getattr(torch, dtype))


def array_of(bits: Array, dtype: str) -> Any:
    """Return the JAX array of these bits: the inverse of `bits_of`. 64-bit dtypes need `jax.enable_x64`."""
    import jax.numpy as jnp

    real = COMPLEX.get(dtype, dtype)
    values = np.array(bits, dtype=UNSIGNED[real]).view(jnp.dtype(real))
    return jnp.asarray(values.view(dtype)[..., 0] if dtype in COMPLEX else values)


def decode(bits: Array, dtype: str) -> Array:
    """Return the values of these bits; bfloat16 as float32, which holds each of its values."""
    bits = np.asarray(bits, dtype=UNSIGNED[dtype])
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(dtype)


def encode(values: Array, dtype: str) -> Array:
    """Return the bits of these values, rounded to the nearest of `dtype`, ties to the even one."""
    if dtype != "bfloat16":
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(dtype).view(UNSIGNED[dtype])
    wide = np.asarray(values, dtype=np.float32).view(np.uint32)
    # Half of what is cut off, less one, plus one where the kept part is odd: the carry is the rounding.
    rounded = (wide.astype(np.uint64) + 0x7FFF + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def same_bits(actual: Array, expected: Array, dtype: str) -> Array:
    """Return, element by element, whether bits are the same, or both NaN (sign and payload are the hardware's own)."""
    same: Array = (actual == expected) | (is_nan(actual, dtype) & is_nan(expected, dtype))
    return same


def is_nan(bits: Array, dtype: str) -> Array:
    """Return, element by element, whether bits are NaN; of a complex dtype each half by itself."""
    found: Array = np.isnan(decode(bits, COMPLEX.get(dtype, dtype)))
    return found


def _shown(bits: Any, dtype: str) -> str:
    return f"{decode(bits, dtype)!s} (0x{int(bits):0{2 * bits.itemsize}x})"
