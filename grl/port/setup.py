"""What a user asks `compare` or `compare_training` for, in one frozen record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

__all__ = ["LossFunction", "Losses", "Optimizers", "Setup"]

LossFunction: TypeAlias = Callable[..., Any]
"""A function of the model's output, or of (output, targets), to a scalar of its framework."""

Losses: TypeAlias = LossFunction | tuple[LossFunction, LossFunction] | None
"""(PyTorch's, JAX's), one function for both, or None: a sum that depends on every number of the output."""

Optimizers: TypeAlias = tuple[Any, Any]
"""(PyTorch's, optax's): an optimiser, a scheduler, both, or a function that makes them; a gradient transformation."""


@dataclass(frozen=True)
class Setup:
    """Two models that correspond, and how they are to run; the fields are the arguments of `compare`."""

    torch_model: nn.Module
    nnx_model: nnx.Module
    inputs: object
    loss: Losses = None
    targets: object = None
    layout: str | None = None
    optimizers: Optimizers = (None, None)
    train: bool | None = None
    names: Mapping[str, str] | None = None
    ignore: frozenset[str] = frozenset()
