"""A place where a model keeps numbers, whichever framework it belongs to."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PortError", "Slot", "narrowed"]

Array = NDArray[Any]


class PortError(ValueError):
    """A model cannot be carried across as it is. The message says what came and what to do."""


class Slot(Protocol):
    """A place where a model keeps numbers: a tensor, a Variable, or λ of a gradient reversal layer."""

    identity: Any
    """The same for two names of one place (tied weights)."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape that is accepted; None: any."""

    def read(self) -> Array:
        """The numbers; 8-bit floats and bfloat16 as float32, which holds each of their values."""

    def prepare(self, array: Array) -> Any:
        """These numbers in the dtype and on the device of the place, which stays as it is until `write`."""

    def keep(self) -> Any:
        """What is there now, as `write` takes it."""

    def write(self, value: Any) -> None:
        """Put there what `prepare` or `keep` gave."""


def narrowed(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return numbers in the dtype of where they go, rounded to nearest if it is the narrower float.

    Raises:
        ValueError: floats cannot become integers, nor complex numbers real, nor a finite number infinite; integers
            that do not fit.
    """
    if array.dtype == dtype:
        return array
    kinds = {"b": 0, "u": 1, "i": 1, "f": 2, "V": 2, "c": 3}  # V: the floats of ml_dtypes
    if kinds.get(array.dtype.kind, 4) > kinds.get(dtype.kind, 2):
        raise ValueError(f"got {array.dtype}; accepted is {dtype}")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        if dtype.kind in "bui":
            if not np.array_equal(converted, array):
                raise ValueError(f"a number is beyond the range of {dtype}")
        elif (np.isfinite(array) & ~np.isfinite(converted)).any():
            raise ValueError(f"a number is beyond the range of {dtype}")
    return converted
