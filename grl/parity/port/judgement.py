"""When two arrays of two frameworks are the same but for rounding, and which axis of one is which of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from grl.parity.port.recording import Array

__all__ = ["TOLERANCE", "WIDENING", "agree", "aligned", "distance", "layout_of", "size"]

TOLERANCE = 1e-10
"""Of the float64 runs, relative to an array's largest number: far above their rounding, far below any cause."""

WIDENING = 200 * 2.0**-29
"""How much of the rounding measured in float32 is granted in float64: 2⁻²⁹ is the ratio of their spacings."""


def aligned(theirs: Array, ours: Array) -> Array:
    """Return an array of the nnx model with its axes in PyTorch's order.

    Args:
        theirs: the nnx model's: channels last, or the batch last or second, or as PyTorch has it.
        ours: PyTorch's.
    """
    return theirs.transpose(layout_of(theirs, ours))


def layout_of(theirs: Array, ours: Array) -> tuple[int, ...]:
    """Return the order of axes in which an array is nearest to PyTorch's; as it is, where none has its shape."""
    same = tuple(range(theirs.ndim))
    if theirs.ndim != ours.ndim:
        return same
    fitting = [axes for axes in _layouts(theirs.ndim) if tuple(theirs.shape[a] for a in axes) == ours.shape]
    if len(fitting) <= 1:
        return fitting[0] if fitting else same
    return min(fitting, key=lambda axes: _mean_distance(theirs.transpose(axes), ours))


def _layouts(ndim: int) -> Iterator[tuple[int, ...]]:
    same = tuple(range(ndim))
    yield same
    if ndim >= 3:
        yield (0, ndim - 1, *same[1:-1])  # channels last
        yield (1, 0, *same[2:])  # time first
        yield (ndim - 1, *same[:-1])  # the batch last


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


def agree(ours: Sequence[Array], theirs: Sequence[Array], slack: float = 0.0) -> bool:
    """Return whether float64 arrays are the same but for rounding, whatever the order of their axes.

    Args:
        ours: PyTorch's.
        theirs: the nnx model's; what only one side returns beyond the first array is not looked at.
        slack: what is granted beyond the tolerance.
    """
    if not ours or not theirs:
        return len(ours) == len(theirs)
    pairs = [(a, b) for a, b in zip_longest(ours, theirs) if a is not None and b is not None]
    return all(distance(a, aligned(b, a)) <= TOLERANCE * max(size(a), size(b)) + slack for a, b in pairs)
