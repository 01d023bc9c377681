"""A slot: one place where a model keeps numbers, in either framework."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from grl.arrays import Array, Dtype, Weights
from grl.errors import GrlError

__all__ = ["PortError", "Prepared", "Slot", "narrowed", "read_all", "write_all"]

Prepared: TypeAlias = Any
"""The value that one framework stores in a slot: a tensor, a JAX array or a NumPy number."""


class PortError(GrlError, ValueError):
    """The weights of a model cannot be converted as requested. The message names the weights and a remedy."""


class Slot(Protocol):
    """A place where a model keeps numbers: a tensor, a Variable, or λ of a gradient reversal layer."""

    @property
    def identity(self) -> Hashable:
        """A key that two names of the same slot share (tied weights)."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape that the slot accepts; None if it accepts any."""

    @property
    def dtype(self) -> Dtype:
        """The dtype of the array that `read` returns."""

    def read(self) -> Array:
        """Return the numbers. 8-bit floats and bfloat16 become float32, which represents each of their values.

        Raises:
            ValueError: the slot has no memory.
        """

    def prepare(self, array: Array) -> Prepared:
        """Return the numbers in the slot's dtype and on its device. The slot stays unchanged.

        Raises:
            ValueError: the slot has no memory, or a number does not fit its dtype.
        """

    def keep(self) -> Prepared:
        """Return the present value in the form that `write` takes."""

    def write(self, value: Prepared) -> None:
        """Store a value that `prepare` or `keep` returned."""


def narrowed(array: Array, dtype: Dtype) -> Array:
    """Return an array in another dtype. Floats are rounded to nearest.

    Raises:
        ValueError: the conversion would turn floats into integers, complex numbers into real ones or a finite number
            into an infinite one, or an integer does not fit.
    """
    if array.dtype == dtype:
        return array
    kinds = {"b": 0, "u": 1, "i": 1, "f": 2, "V": 2, "c": 3}  # V: the floats of ml_dtypes
    if kinds.get(array.dtype.kind, 4) > kinds.get(dtype.kind, 2):
        raise ValueError(f"got {array.dtype}; expected {dtype}")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        if dtype.kind in "bui":
            fits = np.array_equal(converted, array)
        else:
            fits = not (np.isfinite(array) & ~np.isfinite(converted)).any()
    if not fits:
        raise ValueError(f"a number is beyond the range of {dtype}")
    return converted


def read_all(slots: Mapping[str, Slot]) -> Weights:
    """Return the numbers of all slots by name.

    Raises:
        PortError: a slot has no memory.
    """
    arrays: Weights = {}
    for name, slot in slots.items():
        try:
            arrays[name] = slot.read()
        except ValueError as error:
            raise PortError(f"{name}: {error}.") from error
    return arrays


class _Change(NamedTuple):
    slot: Slot
    value: Prepared


def write_all(slots: Mapping[str, Slot], arrays: Weights) -> None:
    """Write numbers into slots: into all of them, or into none.

    Args:
        slots: name → slot.
        arrays: name → numbers. An array without a slot must be 0, like a bias that the target lacks.

    Raises:
        PortError: an array does not fit its slot, or two different arrays belong to one slot.
    """
    staged: dict[Hashable, _Change] = {}
    first_names: dict[Hashable, str] = {}
    for name, array in arrays.items():
        slot = slots.get(name)
        if slot is None:
            if array.any():
                raise PortError(f"{name}: the target has no such array, and the source's is not 0.")
            continue
        if slot.shape is not None and slot.shape != array.shape:
            raise PortError(f"{name}: got the shape {array.shape}; expected {slot.shape}.")
        first = first_names.setdefault(slot.identity, name)
        if first != name and not np.array_equal(arrays[first], array, equal_nan=True):
            raise PortError(f"{name}: is tied to {first} in the target, but the source has two different arrays.")
        try:
            staged[slot.identity] = _Change(slot, slot.prepare(array))
        except ValueError as error:
            raise PortError(f"{name}: {error}.") from error
    _commit(list(staged.values()))


def _commit(changes: list[_Change]) -> None:
    """Write all values. If a write fails, restore the slots that were written."""
    previous: list[_Change] = []
    try:
        for slot, value in changes:
            previous.append(_Change(slot, slot.keep()))
            slot.write(value)
    except BaseException:  # a KeyboardInterrupt as well
        for slot, value in previous:
            with suppress(Exception):  # the write that failed has changed nothing
                slot.write(value)
        raise
