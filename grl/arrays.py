"""Types of the NumPy arrays that both frameworks' data are converted to."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Dtype", "Weights"]

Array: TypeAlias = NDArray[Any]
"""A NumPy array of any dtype and shape."""

Dtype: TypeAlias = np.dtype[Any]
"""The dtype of an `Array`."""

Weights: TypeAlias = dict[str, Array]
"""Name → array of a model. Names and layouts are PyTorch's unless a docstring says otherwise."""
