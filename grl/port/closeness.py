"""Whether two arrays of two frameworks are the same up to rounding, and which axes correspond."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from grl.port.runs.recording import Array
from grl.weights.feature_order import to_channels_first

__all__ = ["TOLERANCE", "WIDENING", "agree", "alignment", "distance", "size"]

TOLERANCE = 1e-10
"""Allowed in float64, relative to an array's largest number: far above rounding, far below the effect of a cause."""

WIDENING = 200 * 2.0**-29
"""The part of the rounding measured in float32 that is allowed in float64: 2⁻²⁹ is the ratio of their spacings."""


def alignment(nnx_array: Array, torch_array: Array, channels: Iterable[int] = ()) -> Callable[[Array], Array]:
    """Return the function that brings arrays of the nnx model nearest to PyTorch's; the identity if no shape fits.

    Args:
        nnx_array: channels last, or the batch last or second, or laid out as in PyTorch.
        torch_array: the same in PyTorch's layout.
        channels: how many there may be in a flattened feature map (N, H·W·C), which PyTorch has as (N, C·H·W).
    """
    fitting = [layout for shape, layout in _layouts(nnx_array, channels) if shape == torch_array.shape]
    if len(fitting) <= 1:
        return fitting[0] if fitting else lambda array: array
    return min(fitting, key=lambda layout: _mean_distance(layout(nnx_array), torch_array))


def _layouts(array: Array, channels: Iterable[int]) -> Iterator[tuple[tuple[int, ...], Callable[[Array], Array]]]:
    same = tuple(range(array.ndim))
    orders = [same]
    if array.ndim >= 3:
        orders += [(0, array.ndim - 1, *same[1:-1])]  # channels last
        orders += [(1, 0, *same[2:]), (array.ndim - 1, *same[:-1])]  # time first; the batch last
    for axes in dict.fromkeys(orders):
        yield tuple(array.shape[axis] for axis in axes), partial(np.transpose, axes=axes)
    for count in set(channels):
        if array.ndim == 2 and array.shape[1] % count == 0:
            yield array.shape, partial(to_channels_first, channels=count)


def _mean_distance(a: Array, b: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.abs(a - b), nan=np.inf).mean()) if a.size else 0.0


def distance(a: Array, b: Array) -> float:
    """Return the largest absolute difference; infinite if the shapes, or the places of NaN and infinity, differ."""
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    with np.errstate(all="ignore"):
        difference = np.atleast_1d(np.abs(a - b))
        difference[np.atleast_1d((a == b) | (np.isnan(a) & np.isnan(b)))] = 0.0
        largest = float(difference.max())
    return largest if np.isfinite(largest) else float("inf")


def size(a: Array) -> float:
    """Return the largest finite absolute number of an array; 0 of an empty one."""
    finite = np.abs(a[np.isfinite(a)])
    return float(finite.max()) if finite.size else 0.0


def agree(
    torch_arrays: Sequence[Array], nnx_arrays: Sequence[Array], slack: float = 0.0, channels: Iterable[int] = ()
) -> bool:
    """Return whether float64 arrays are the same up to rounding, whatever the order of their axes.

    Args:
        torch_arrays: PyTorch's.
        nnx_arrays: the nnx model's; arrays that only one side returns are ignored.
        slack: the difference that is allowed beyond the tolerance.
        channels: as for `alignment`.
    """
    if not torch_arrays or not nnx_arrays:
        return len(torch_arrays) == len(nnx_arrays)
    for torch_array, nnx_array in zip(torch_arrays, nnx_arrays, strict=False):
        aligned = alignment(nnx_array, torch_array, channels)(nnx_array)
        allowed = TOLERANCE * max(size(torch_array), size(aligned)) + slack
        if not distance(torch_array, aligned) <= allowed:
            return False
    return True
