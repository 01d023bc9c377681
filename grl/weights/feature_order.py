"""The order of a flattened feature map's features: (C, H, W) in PyTorch, (H, W, C) in nnx. Which arrays have it."""

from __future__ import annotations

import numpy as np

from grl.arrays import Array

__all__ = ["BY_FEATURE", "channels_of", "input_weight", "to_channels_first", "to_channels_last"]

BY_FEATURE = ("Linear", "BatchNorm", "LayerNorm", "RMSNorm", "LSTM", "GRU", "RNN")
"""The kinds of layers whose arrays have an axis of input features, so that they may follow a flattened map."""


def to_channels_first(array: Array, channels: int) -> Array:
    """Return an array with its inputs in the order (C, H, W) instead of (H, W, C).

    Args:
        array: (out, H·W·C) of a layer in PyTorch's layout, or (H·W·C,) of a norm.
        channels: C.
    """
    return _exchanged(array, (-1, channels))


def to_channels_last(array: Array, channels: int) -> Array:
    """Return the inverse of `to_channels_first`."""
    return _exchanged(array, (channels, -1))


def _exchanged(array: Array, split: tuple[int, int]) -> Array:
    return array.reshape(*array.shape[:-1], *split).swapaxes(-1, -2).reshape(array.shape)


def channels_of(first: Array, second: Array) -> int | None:
    """Return C, given the inputs that change with each of two neighbouring channels of a map (H, W, C).

    Args:
        first: (inputs,) of bool: the inputs that change with one channel.
        second: the inputs that change with the next channel.

    Returns:
        C; 0 for the order (C, H, W), and for a map of one pixel; None for any other order.
    """
    positions, next_positions = np.flatnonzero(first), np.flatnonzero(second)
    if len(positions) != len(next_positions) or len(positions) == 0:
        return None
    steps = np.diff(positions)
    if (steps == 1).all() and (next_positions == positions + len(positions)).all():
        return 0
    step = int(steps[0]) if len(steps) else 0
    is_interleaved = (
        step > 1
        and len(positions) * step == len(first)
        and (steps == step).all()
        and (next_positions == positions + 1).all()
    )
    return step if is_interleaved else None


def input_weight(kind: str) -> str:
    """Return PyTorch's name of the weight whose last axis is the layer's inputs."""
    if kind in ("LSTM", "GRU", "RNN"):
        return "weight_ih_l0"
    return "weight_ih" if kind.endswith("Cell") else "weight"
