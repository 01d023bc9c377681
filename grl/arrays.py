"""Names for the arrays that go between the frameworks: all of them are NumPy's."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["Array", "Weights"]

Array: TypeAlias = NDArray[Any]
"""A NumPy array of any dtype and shape."""

Weights: TypeAlias = dict[str, Array]
"""A model's arrays by name, in PyTorch's names and layouts unless something else is said."""
