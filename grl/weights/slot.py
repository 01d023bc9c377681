"""A place where a model keeps numbers, whichever framework it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from grl.arrays import Array, Weights
from grl.errors import GrlError

__all__ = ["PortError", "Slot", "narrowed", "read_all", "write_all"]


class PortError(GrlError, ValueError):
    """A model cannot be carried across as it is. The message says what came and what to do."""


class Slot(Protocol):
    """A place where a model keeps numbers: a tensor, a Variable, or λ of a gradient reversal layer."""

    identity: Any
    """The same for two names of one place (tied weights)."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape that is accepted; None: any."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `read` gives."""

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
        raise ValueError(f"got {array.dtype}; expected {dtype}")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        if dtype.kind in "bui":
            if not np.array_equal(converted, array):
                raise ValueError(f"a number is beyond the range of {dtype}")
        elif (np.isfinite(array) & ~np.isfinite(converted)).any():
            raise ValueError(f"a number is beyond the range of {dtype}")
    return converted


def read_all(slots: Mapping[str, Slot]) -> Weights:
    """Return the numbers of all places.

    Raises:
        PortError: a place holds none.
    """
    found: Weights = {}
    for name, slot in slots.items():
        try:
            found[name] = slot.read()
        except ValueError as error:
            raise PortError(f"{name}: {error}.") from error
    return found


def write_all(slots: Mapping[str, Slot], arrays: Weights) -> None:
    """Put numbers in their places: in all of them, or in none.

    Args:
        slots: the places, by name.
        arrays: the numbers, by the same names; an array without a place has to be 0 (a bias that is not there).

    Raises:
        PortError: an array does not fit; two that differ belong to one place.
    """
    staged: dict[Any, tuple[Slot, Any]] = {}
    sources: dict[Any, str] = {}
    for name, array in arrays.items():
        slot = slots.get(name)
        if slot is None:
            if array.any():
                raise PortError(f"{name}: the target has no such array, and the source's is not 0.")
            continue
        if slot.shape is not None and slot.shape != array.shape:
            raise PortError(f"{name}: got the shape {array.shape}; expected {slot.shape}.")
        before = sources.setdefault(slot.identity, name)
        if before != name and not np.array_equal(arrays[before], array, equal_nan=True):
            raise PortError(f"{name}: is one with {before} in the target, and the source has two different arrays.")
        try:
            staged[slot.identity] = slot, slot.prepare(array)
        except ValueError as error:
            raise PortError(f"{name}: {error}.") from error
    _commit(list(staged.values()))


def _commit(staged: list[tuple[Slot, Any]]) -> None:
    done: list[tuple[Slot, Any]] = []
    try:
        for slot, value in staged:
            old = slot.keep()
            done.append((slot, old))
            slot.write(value)
    except BaseException:  # an interrupt too
        for slot, old in done:
            with suppress(Exception):  # the very write that failed; it has changed nothing
                slot.write(old)
        raise
