"""The sizes of a domain-adversarial network, without a framework."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

__all__ = ["feature_map", "feature_size"]


def feature_size(backbone: object) -> int:
    """Return the number of features of a backbone, its attribute `output_dim`.

    Args:
        backbone: a module of either framework.

    Returns:
        D, where the backbone's features have the shape (N, D).

    Raises:
        TypeError: the backbone has no integer `output_dim`.

    Example:
        >>> class Backbone:
        ...     output_dim = 15
        >>> feature_size(Backbone())
        15
    """
    output_dim = getattr(backbone, "output_dim", None)
    if isinstance(output_dim, bool) or not isinstance(output_dim, Integral):
        raise TypeError(f"backbone: output_dim is {output_dim!r}; expected the integer number of features.")
    return int(output_dim)


def feature_map(size: Sequence[int], layers: int, kernel_size: int, padding: int) -> tuple[int, int]:
    """Return the size of an image after convolutions (stride 1), each followed by 2×2 pooling.

    Args:
        size: height and width of the image, in pixels.
        layers: the number of convolutions.
        kernel_size: the side of the kernels.
        padding: zeros on each side of a feature map.

    Returns:
        Height and width of the last feature map; below 1 where the image is too small.

    Example:
        >>> feature_map((28, 28), layers=2, kernel_size=5, padding=0)
        (4, 4)
    """
    height, width = size
    for _ in range(layers):
        height = (height + 2 * padding - kernel_size + 1) // 2
        width = (width + 2 * padding - kernel_size + 1) // 2
    return height, width
