"""Move numbers by a unit in the last place, to measure what the rounding of float64 does to a result."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grl.arrays import Array

__all__ = ["MOVED", "Perturbation", "moved"]

MOVED = 2.0**-52
"""How far a number is moved, relative to itself: one unit in the last place of float64."""


def moved(array: Array, generator: np.random.Generator) -> Array:
    """Return an array of float64 with each number moved up or down by a unit in the last place.

    An array of whole numbers stays as it is: a model may compare a mask or a count with a number.
    """
    if array.dtype != np.float64 or np.array_equal(array, np.round(array)):
        return array
    signs: Array = generator.choice((-1.0, 1.0), array.shape)
    return array * (1 + MOVED * signs)


class Perturbation:
    """Moves what PyTorch's functions return, and the cotangents that flow back to it, by a unit in the last place.

    This is Monte Carlo arithmetic (Parker, 1997): the spread of a few such runs is the rounding error of each result,
    also where large terms cancel and the result says nothing about their size.

    Args:
        seed: of the random signs.
    """

    def __init__(self, seed: int) -> None:
        self.numpy = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def perturb(self, result: object, arguments: tuple[object, ...]) -> None:
        """Move the result of a function in place; a view of an argument, or a constant, stays as it is.

        Args:
            result: what the function returned.
            arguments: what it took.
        """
        if isinstance(result, tuple | list):
            for part in result:
                self.perturb(part, arguments)
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or result.grad_fn is None:
            return
        result.register_hook(lambda cotangent: cotangent * self._factors(cotangent))
        memory = {_memory(argument) for argument in _flat(arguments)}
        if result.layout == torch.strided and _memory(result) not in memory:
            result.data.mul_(self._factors(result))  # `data`: autograd does not count it as a change in place

    def _factors(self, tensor: Tensor) -> Tensor:
        bits = torch.randint(0, 2, tensor.shape, generator=self._generator, dtype=torch.float64)
        return (1 + MOVED * (2 * bits - 1)).to(tensor.device)


def _flat(values: object) -> list[Tensor]:
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in _flat(value)]
    return [values] if isinstance(values, Tensor) else []


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
