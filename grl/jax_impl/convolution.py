"""Convolution and pooling in the forms that XLA compiles well for the CPU. The values are those of any other form.

Images are laid out (C, H, W, N) here: every slice is then a block of whole rows of N numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

__all__ = ["convolve", "max_pool"]

_LARGEST = 2**21  # numbers of patches at once: 8 MB in float32, a part of the last cache


def convolve(x: Array, kernel: Array, padding: int = 0) -> Array:
    """Return the convolution (cross-correlation, stride 1) of images with a square kernel.

    On the CPU it is a matrix product of the kernel with patches. XLA's own kernel gradient is slow there, and
    inside `lax.scan` (jax 0.10) both its gradients fall into a form that is 10 to 40 times slower again.

    Args:
        x: (C, H, W, N).
        kernel: (side, side, C, K).
        padding: zeros on each side of an image.

    Returns:
        (K, H + 2·padding − side + 1, W + 2·padding − side + 1, N).
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    y: Array = lax.platform_dependent(x, kernel, cpu=_on_each_device, default=_native_convolution)
    return y


def max_pool(x: Array) -> Array:
    """Return the largest of each 2×2 block of (C, H, W, N); the first in row order takes the gradient of a tie.

    That is PyTorch's rule. `lax.reduce_window` has the same, but its gradient on the CPU is a slow scatter.
    """
    _, height, width, _ = x.shape
    return _max_of_blocks(x[:, : height // 2 * 2, : width // 2 * 2])


@jax.custom_vjp
def _max_of_blocks(x: Array) -> Array:
    return _forward(x)[0]


def _forward(x: Array) -> tuple[Array, Array]:
    blocks = _split(x)
    corners = [blocks[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]
    largest = jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))
    winner = jnp.where(corners[2] == largest, 2, 3)
    winner = jnp.where(corners[1] == largest, 1, winner)
    winner = jnp.where(corners[0] == largest, 0, winner)
    return largest, winner


def _backward(winner: Array, cotangent: Array) -> tuple[Array]:
    corner = np.array([[0, 1], [2, 3]])[None, :, None, :, None]

    # A loop, which XLA does not fuse with what comes before: it would compute all of that anew for each of four pixels.
    def of_channel(arrays: tuple[Array, Array]) -> Array:
        winner, cotangent = arrays
        return jnp.where(winner[:, None, :, None] == corner, cotangent[:, None, :, None], 0)

    blocks = lax.map(of_channel, (winner, cotangent))
    channels, height, _, width, _, count = blocks.shape
    return (blocks.reshape(channels, 2 * height, 2 * width, count),)


_max_of_blocks.defvjp(_forward, _backward)


def _split(x: Array) -> Array:
    channels, height, width, count = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2, count)


def _on_each_device(x: Array, kernel: Array) -> Array:
    """Where images are spread over an axis "batch" of the mesh, each device takes its own.

    Left to itself, XLA gathers the patches of all images on every device, since N is merged with rows and columns; kept
    apart, it would be spared that and take a third longer on one device.
    """
    if "batch" not in jax.sharding.get_abstract_mesh().axis_names:
        return _patches_times_kernel(x, kernel)
    images = PartitionSpec(None, None, None, "batch")
    y: Array = jax.shard_map(_patches_times_kernel, in_specs=(images, PartitionSpec()), out_specs=images)(x, kernel)
    return y


def _patches_times_kernel(x: Array, kernel: Array) -> Array:
    """In bands of rows: patches that stay in the cache make a whole training step a quarter faster."""
    side, _, channels, features = kernel.shape
    _, height, width, count = x.shape
    rows, width = height - side + 1, width - side + 1
    bands = max(1, -(-side * side * channels * rows * width * count // _LARGEST))  # of no images, one
    step = -(-rows // bands)
    weights = kernel.reshape(-1, features).T
    starts = range(0, rows, step)
    products = [weights @ _patches(x[:, i : i + step + side - 1], side) for i in starts]
    heights = [min(step, rows - i) for i in starts]
    shaped = [p.reshape(features, height, width, count) for p, height in zip(products, heights, strict=True)]
    return jnp.concatenate(shaped, 1)


def _patches(x: Array, side: int) -> Array:
    """Every square of so many pixels as a column: (side · side · C, rows · columns · N)."""
    channels, height, width, count = x.shape
    rows, columns = height - side + 1, width - side + 1
    beside = jnp.stack([x[:, :, j : j + columns] for j in range(side)])  # in two goes, as its gradient
    patches = jnp.stack([beside[:, :, i : i + rows] for i in range(side)])
    return patches.reshape(side * side * channels, rows * columns * count)


def _native_convolution(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("CHWN", "HWIO", "CHWN"))
