"""The order of the features of a flattened map: (C, H, W) in PyTorch, (H, W, C) in nnx, and which arrays have it."""

from __future__ import annotations

import numpy as np

from grl.arrays import Array

__all__ = ["BY_FEATURE", "channels_of", "input_weight", "to_channels_first", "to_channels_last"]

BY_FEATURE = ("Linear", "BatchNorm", "LayerNorm", "RMSNorm", "LSTM", "GRU", "RNN")
"""The kinds of layers that have an axis of the features that they take, and so may follow a flattened map."""


def to_channels_first(array: Array, channels: int) -> Array:
    """Return an array of such a layer, in PyTorch's layout but nnx's order of inputs (H, W, C), in the order (C, H, W).

    Args:
        array: (out, H·W·C), or (H·W·C,) of a norm.
        channels: C.
    """
    return _exchanged(array, (-1, channels))


def to_channels_last(array: Array, channels: int) -> Array:
    """Return the inverse of `to_channels_first`."""
    return _exchanged(array, (channels, -1))


def _exchanged(array: Array, split: tuple[int, int]) -> Array:
    return array.reshape(*array.shape[:-1], *split).swapaxes(-1, -2).reshape(array.shape)


def channels_of(first: Array, second: Array) -> int | None:
    """Return C if these are the inputs that change with two neighbouring channels of a map (H, W, C).

    Args:
        first: whether each input changes with one channel.
        second: with the next one.

    Returns:
        C; 0 for the order (C, H, W), and for a map of one pixel; None if it is neither.
    """
    at, after = np.flatnonzero(first), np.flatnonzero(second)
    if len(at) != len(after) or len(at) == 0:
        return None
    steps = np.diff(at)
    if (steps == 1).all() and (after == at + len(at)).all():
        return 0
    step = int(steps[0])
    regular = step > 1 and len(at) * step == len(first) and (steps == step).all() and (after == at + 1).all()
    return step if regular else None


def input_weight(kind: str) -> str:
    """The name, in PyTorch, of the weight whose last axis is that of what a layer takes."""
    if kind in ("LSTM", "GRU", "RNN"):
        return "weight_ih_l0"
    return "weight_ih" if kind.endswith("Cell") else "weight"
