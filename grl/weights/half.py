"""What `grl.weights` needs from each framework: a Protocol that `torch_slots` and `nnx_slots` satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from grl.weights.slot import Slot

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

    Model: TypeAlias = nn.Module | nnx.Module
    """A model of either framework."""

__all__ = ["Child", "Half", "Part", "Side"]

Side: TypeAlias = Literal["torch", "nnx"]
"""The framework of a model."""

Part: TypeAlias = Any
"""A module, tensor or Variable within a model. Its attributes depend on its class, so no static type describes them."""


class Child(NamedTuple):
    """A tensor, Variable or module that a module owns.

    Args:
        name: its name in its own framework.
        torch_name: the name that PyTorch would give it.
        value: the tensor, Variable or module.
    """

    name: str
    torch_name: str
    value: Part


class Half(Protocol):
    """The functions that `torch_slots` and `nnx_slots` share."""

    NAME: str
    """The framework's name in messages."""

    def children(self, module: Part) -> Iterator[Child]:
        """Yield the tensors, Variables and modules of a module, in the order of their definition."""

    def is_tensor(self, value: Part) -> bool:
        """Return whether a child is a tensor or a Variable, not a module."""

    def keeps_order(self, module: Part, few: int = 4) -> bool | None:
        """Return whether the children are in the order of their definition; None if that cannot be known."""

    def computes_rms_norm(self, module: Part) -> bool:
        """Return whether a module of an unknown class computes an RMSNorm, by running it."""

    def slots(self, value: Part, prefix: str = "") -> dict[str, Slot]:
        """Return the slots of a tensor or Variable, or of a module and everything below it, by name."""
