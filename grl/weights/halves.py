"""The framework of a model, and the module that handles it."""

from __future__ import annotations

import sys
from typing import cast

from grl.weights.half import Half, Side

__all__ = ["half_of", "side_of"]


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
