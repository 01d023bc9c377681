"""PyTorch's optimisers in a comparison: copied with the model that they train, and stepped once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grl.arrays import Array
from grl.port.runs.torch_arrays import to_numpy

__all__ = ["made_with", "step_of"]


def made_with(model: nn.Module, optimizer: Any) -> tuple[nn.Module, Optimizer | None, Any]:
    """Return copies of a model, of its optimiser and of its scheduler, both over the parameters of the copy.

    Args:
        model: the user's.
        optimizer: a `torch.optim.Optimizer`, a scheduler that holds one, a tuple of both, a function of parameters that
            makes any of these, or None.
    """
    is_made = optimizer is not None and (isinstance(optimizer, tuple) or hasattr(optimizer, "step"))
    # In one copy, so that the copy of the optimiser is over the parameters of the copy of the model.
    model, made = copy.deepcopy((model, optimizer if is_made else None))
    if optimizer is not None and not is_made:
        made = optimizer(model.parameters())
    if isinstance(made, tuple):
        return model, *made
    inner = getattr(made, "optimizer", None)
    return (model, made, None) if inner is None else (model, inner, made)


def step_of(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]
) -> dict[str, Array]:
    """Return what one step adds to each parameter; parameters and optimiser stay as they are.

    Args:
        optimizer: over these parameters. It may change the gradients in place.
        parameters: by name.
        gradients: of each parameter, in the same order.
    """
    state = copy.deepcopy(optimizer.state_dict())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    updates = {name: to_numpy(p.detach() - before[name]) for name, p in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            parameter.grad = None
    optimizer.load_state_dict(state)
    return updates
