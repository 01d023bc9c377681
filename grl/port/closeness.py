"""When two arrays of two frameworks are the same but for rounding, and which axis of one is which of the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from grl.port.runs.recording import Array
from grl.weights.feature_order import to_channels_first

__all__ = ["TOLERANCE", "WIDENING", "agree", "aligned", "alignment", "distance", "size"]

TOLERANCE = 1e-10
"""Of the float64 runs, relative to an array's largest number: far above their rounding, far below any cause."""

WIDENING = 200 * 2.0**-29
"""How much of the rounding measured in float32 is granted in float64: 2⁻²⁹ is the ratio of their spacings."""


def aligned(theirs: Array, ours: Array, channels: Iterable[int] = ()) -> Array:
    """Return an array of the nnx model with its axes in PyTorch's order, as `alignment` finds it."""
    return alignment(theirs, ours, channels)(theirs)


def alignment(theirs: Array, ours: Array, channels: Iterable[int] = ()) -> Callable[[Array], Array]:
    """Return what brings arrays of the nnx model nearest to PyTorch's; the identity, where nothing has their shape.

    Args:
        theirs: the nnx model's: channels last, or the batch last or second, or as PyTorch has it.
        ours: PyTorch's.
        channels: how many there may be in a flattened feature map (N, H·W·C), which PyTorch has as (N, C·H·W).
    """
    fitting = [way for shape, way in _ways(theirs, channels) if shape == ours.shape]
    if len(fitting) <= 1:
        return fitting[0] if fitting else lambda array: array
    return min(fitting, key=lambda way: _mean_distance(way(theirs), ours))


def _ways(theirs: Array, channels: Iterable[int]) -> Iterator[tuple[tuple[int, ...], Callable[[Array], Array]]]:
    same = tuple(range(theirs.ndim))
    orders = [same]
    if theirs.ndim >= 3:
        orders += [(0, theirs.ndim - 1, *same[1:-1])]  # channels last
        orders += [(1, 0, *same[2:]), (theirs.ndim - 1, *same[:-1])]  # time first; the batch last
    for axes in dict.fromkeys(orders):
        yield tuple(theirs.shape[a] for a in axes), partial(np.transpose, axes=axes)
    for count in set(channels):
        if theirs.ndim == 2 and theirs.shape[1] % count == 0:
            yield theirs.shape, partial(to_channels_first, channels=count)


def _mean_distance(a: Array, b: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.abs(a - b), nan=np.inf).mean()) if a.size else 0.0


def distance(a: Array, b: Array) -> float:
    """Return the largest absolute difference; infinite where shapes or what is not finite differ."""
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


def agree(ours: Sequence[Array], theirs: Sequence[Array], slack: float = 0.0, channels: Iterable[int] = ()) -> bool:
    """Return whether float64 arrays are the same but for rounding, whatever the order of their axes.

    Args:
        ours: PyTorch's.
        theirs: the nnx model's; what only one side returns is not looked at.
        slack: what is granted beyond the tolerance.
        channels: as for `alignment`.
    """
    if not ours or not theirs:
        return len(ours) == len(theirs)
    pairs = zip(ours, theirs, strict=False)
    return all(distance(a, aligned(b, a, channels)) <= TOLERANCE * max(size(a), size(b)) + slack for a, b in pairs)
