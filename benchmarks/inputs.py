"""Random inputs, and the number of them that exceeds the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["base_block", "ring_length"]

_BLOCK = 2**22
_CACHE = 64 * 2**20  # bytes: at least the last-level cache of the machines used


def base_block(elements: int, seed: int) -> NDArray[np.float32]:
    """Return at most 2^22 random numbers in ±1, none of them near 0; larger inputs repeat them.

    Zeros and subnormal numbers can be faster or slower than what a model computes.
    """
    generator = np.random.default_rng(seed)
    numbers = generator.random(min(elements, _BLOCK), dtype=np.float32) * np.float32(0.9) + np.float32(0.1)
    signs = generator.random(len(numbers), dtype=np.float32) - np.float32(0.5)
    return np.copysign(numbers, signs)


def ring_length(size: int) -> int:
    """Return the number of inputs of this size that the calls cycle through.

    From 1 MiB on they are together twice the cache, so that each call reads from memory. Below that a call lasts as
    long as it takes to launch it, wherever its input is.
    """
    return max(2, min(64, 2 * _CACHE // size)) if size >= 2**20 else 2
