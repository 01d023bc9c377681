"""A layer behind a flattened feature map: PyTorch counts its inputs channel by channel, nnx pixel by pixel."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["to_channels_first", "to_channels_last"]

Array = NDArray[Any]


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
