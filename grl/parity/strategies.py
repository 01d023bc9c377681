"""Hypothesis strategies for your own tests of layers: shapes, dtypes, arrays by bit patterns, coefficients.

Arrays are drawn as bits (unsigned integers, see `grl.bits`). Every value of a dtype can therefore be drawn, including
signed zeros, infinities, NaN and subnormals, and no framework is needed:

    @given(bits=strategies.arrays("bfloat16", (2, 3)), coeff=strategies.coefficients((2, 3)))
    def test_forward_keeps_the_bits(bits, coeff):
        x = tensor_of(bits, "bfloat16")
        assert_same_bits(my_layer(x, coeff.native), x)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grl.arrays import Array
from grl.bits import COMPLEX, REAL, UNSIGNED, is_nan

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError("grl.parity.strategies needs Hypothesis: pip install hypothesis") from error

__all__ = [
    "ARRAYS",
    "KINDS",
    "MANTISSA_BITS",
    "NUMPY_SCALARS",
    "SHAPES",
    "Coefficient",
    "arrays",
    "coefficients",
    "dtypes",
    "every_pattern",
    "numbers",
    "quieted",
    "shapes",
    "special_bits",
]


# Only a few, because XLA compiles a program for each: empty, 0-d, one element, vectors, and up to four dimensions.
SHAPES = ((), (0,), (1,), (5,), (2, 3), (3, 3), (3, 0), (2, 1, 4), (2, 3, 2, 2))

KINDS = ("int", "float", "numpy scalar", "0-d array", "per sample", "per element")
"""Every kind of coefficient that the contract accepts."""

MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}

NUMPY_SCALARS = ("float16", "float32", "float64", "int32", "int64", "uint8")
ARRAYS = ("float16", "float32", "float64", "int32")  # each exists in PyTorch and in JAX


@dataclass(frozen=True)
class Coefficient:
    """A coefficient λ of one of the kinds that the layers accept.

    Args:
        kind: one of `KINDS`.
        values: λ in 64 bits; shape () for a number, (N,) per sample, or that of x per element.
        dtype: the dtype of a NumPy scalar or array.
    """

    kind: str
    values: Array
    dtype: str = "float64"

    @property
    def native(self) -> float | np.generic | Array:
        """λ as a user would write it: a Python number, a NumPy scalar or a NumPy array."""
        if self.kind in ("int", "float"):
            number: float = {"int": int, "float": float}[self.kind](self.values)
            return number
        array: Array = self.values.astype(self.dtype)
        if self.kind != "numpy scalar":
            return array
        scalar: np.generic = array.reshape(-1)[0]
        return scalar

    def aligned(self, shape: tuple[int, ...]) -> Array:
        """Return λ in the shape in which it multiplies a gradient of shape `shape`."""
        if self.values.size == 1:
            return self.values.reshape(())
        return self.values.reshape(-1, *[1] * (len(shape) - 1)) if self.kind == "per sample" else self.values

    def __repr__(self) -> str:
        if self.kind in ("int", "float"):
            return repr(self.native)
        if self.kind == "numpy scalar":
            return f"np.{self.dtype}({self.values.item()!r})"
        return f"np.array({self.values.tolist()!r}, dtype=np.{self.dtype}).reshape({self.values.shape})"


def dtypes(names: tuple[str, ...] = REAL) -> st.SearchStrategy[str]:
    """Draw the name of a dtype.

    Args:
        names: the names to draw from; all real dtypes by default.
    """
    return st.sampled_from(names)


def shapes(min_dims: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw one of `SHAPES`.

    Args:
        min_dims: the smallest number of dimensions.
    """
    return st.sampled_from([shape for shape in SHAPES if len(shape) >= min_dims])


def special_bits(dtype: str) -> tuple[int, ...]:
    """Return the bits of a dtype's special values, with both signs.

    These are zero, the smallest and largest subnormal and normal numbers, one and its neighbours, infinity and NaN.

    Args:
        dtype: float16, bfloat16, float32 or float64.
    """
    unsigned = np.iinfo(UNSIGNED[dtype])
    ones = (1 << MANTISSA_BITS[dtype]) - 1
    infinity = (unsigned.max // 2) ^ ones  # every bit of the exponent, none of the mantissa
    one = (unsigned.max // 4) ^ ones
    positive = (0, 1, 2, ones // 2, ones, ones + 1, ones + 2, one - 1, one, one + 1, infinity - 1, infinity)
    nan = (infinity + (ones + 1) // 2, infinity + ones)
    return tuple(sign | bits for sign in (0, unsigned.max // 2 + 1) for bits in (*positive, *nan))


@st.composite
def arrays(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> Array:
    """Draw the bits of an array: any pattern except a signalling NaN.

    `grl.bits.tensor_of` and `grl.bits.array_of` turn the bits into a tensor or a JAX array.

    Args:
        dtype: float16, bfloat16, float32, float64, complex64 or complex128.
        shape: the shape of the array.

    Returns:
        Unsigned integers in this shape. A complex dtype adds a last axis of size 2: the real and the imaginary half.
    """
    if dtype in COMPLEX:
        halves: Array = draw(arrays(COMPLEX[dtype], (*shape, 2)))
        return halves
    unsigned, size = UNSIGNED[dtype], int(np.prod(shape))
    data = draw(st.binary(min_size=size * unsigned().itemsize, max_size=size * unsigned().itemsize))
    bits = np.frombuffer(data, dtype=unsigned).copy()
    specials = st.dictionaries(st.integers(0, max(size - 1, 0)), st.sampled_from(special_bits(dtype)), max_size=size)
    for index, pattern in draw(specials).items():
        bits[index] = pattern
    return quieted(bits, dtype).reshape(shape)


def quieted(bits: Array, dtype: str) -> Array:
    """Return the bits with every signalling NaN made quiet, as hardware may do whenever it touches one.

    Args:
        bits: unsigned integers of any shape.
        dtype: the dtype that they encode.
    """
    quiet = bits | bits.dtype.type(1 << (MANTISSA_BITS[dtype] - 1))
    return np.where(is_nan(bits, dtype), quiet, bits)


def every_pattern(dtype: str) -> Array:
    """Return the bits of all 65,536 values of a 16-bit dtype, shape (65536,).

    Args:
        dtype: float16 or bfloat16.
    """
    return quieted(np.arange(1 << 16, dtype=np.uint16), dtype)


def numbers() -> st.SearchStrategy[float]:
    """Draw a value of λ: common values, any mantissa at common magnitudes, and any finite 64-bit float."""
    usual = st.sampled_from([1.0, 0.0, -0.0, -1.0, 0.1, 0.3, 0.5, -0.7, 1e-3, 2.0, 31.4, 1 / 3])
    mantissas = st.builds(np.ldexp, st.floats(-1, 1), st.integers(-12, 12)).map(float)
    return usual | mantissas | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def coefficients(
    draw: st.DrawFn, shape: tuple[int, ...], kinds: tuple[str, ...] = KINDS, arrays: tuple[str, ...] = ARRAYS
) -> Coefficient:
    """Draw a coefficient of any kind that the layers accept for an x of this shape.

    Args:
        shape: the shape of x.
        kinds: the kinds to draw from, some of `KINDS`.
        arrays: the dtypes of coefficients that are arrays.
    """
    kind = draw(st.sampled_from([k for k in kinds if k != "per sample" or len(shape) >= 2]))
    if kind == "int":
        return Coefficient(kind, np.array(draw(st.integers(-1000, 1000)), np.float64))
    if kind == "float":
        return Coefficient(kind, np.array(draw(numbers()), np.float64))
    dtype = draw(st.sampled_from(NUMPY_SCALARS if kind == "numpy scalar" else arrays))
    size: tuple[int, ...] = ()
    if kind == "per sample":
        size = shape[:1]
    elif kind == "per element":
        size = tuple(draw(st.sampled_from([1, n])) if n else n for n in shape)
    count = int(np.prod(size))
    values = [draw(_numbers_of(dtype)) for _ in range(count)]
    return Coefficient(kind, np.array(values, dtype=np.float64).reshape(size), dtype)


def _numbers_of(dtype: str) -> st.SearchStrategy[float]:
    if not dtype.startswith("float"):
        return st.integers(0, 100).map(float)
    largest = float(np.finfo(dtype).max)
    values = numbers().filter(lambda value: abs(value) <= largest).map(lambda value: float(np.dtype(dtype).type(value)))
    if dtype != "float32":
        return values
    # XLA on the CPU reads a subnormal float32 λ as 0, whatever the precision of the product.
    return values.filter(lambda value: value == 0 or abs(value) >= float(np.finfo(np.float32).tiny))
