"""The leaves of a pytree that can hold no array. Any other object could pass a gradient on unreversed."""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType

import numpy as np

__all__ = ["is_plain"]

_VALUES = (bool, int, float, complex, str, bytes, slice, range, type, type(None), np.generic, np.dtype, np.ufunc)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, MethodDescriptorType)


def is_plain(leaf: object) -> bool:
    """Return whether a leaf is a plain value, or a function that is not bound to an object.

    Example:
        >>> is_plain("relu"), is_plain(len), is_plain([1.0].append)
        (True, True, False)
    """
    if isinstance(leaf, partial):
        return all(map(is_plain, (leaf.func, *leaf.args, *leaf.keywords.values())))
    if isinstance(leaf, _FUNCTIONS):
        return isinstance(getattr(leaf, "__self__", None), type | ModuleType | None)
    return isinstance(leaf, _VALUES)
