"""What `grl.weights` needs from each framework: one Protocol, and one module that satisfies it for either side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from grl.weights.slot import Slot

if TYPE_CHECKING:
    from flax import nnx
    from torch import nn

    Model: TypeAlias = nn.Module | nnx.Module
    """A model of either framework."""

__all__ = ["Child", "Half", "Part", "Side", "half_of", "side_of"]

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


def side_of(model: object, argument: str = "model") -> Side:
    """Return the framework of a model. This never imports a framework.

    Args:
        model: an `nn.Module` or an `nnx.Module`.
        argument: its name in error messages.

    Raises:
        TypeError: the model is neither.
    """
    for side, package in (("torch", "torch.nn"), ("nnx", "flax.nnx")):
        if isinstance(model, getattr(sys.modules.get(package), "Module", ())):
            return cast(Side, side)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise TypeError(f"{argument}: got a {kind}; expected an nn.Module of PyTorch or an nnx.Module.")


def half_of(side: Side) -> Half:
    """Return the module that handles one framework. Only a side whose models exist is imported."""
    if side == "torch":
        from grl.weights import torch_slots

        return torch_slots
    from grl.weights import nnx_slots

    return nnx_slots
