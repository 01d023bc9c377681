"""The PyTorch half of the diagnosis: gradients as NumPy arrays, with a reversal layer and with it bypassed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grl.arrays import Array
from grl.diagnosis.records import Case, Loss, LossGradients, Pullback
from grl.diagnosis.torch_bypass import is_function, reversal_bypassed

__all__ = [
    "NAME",
    "gradients",
    "is_function",
    "is_real_float",
    "limits",
    "names",
    "numbers",
    "parts",
    "passes_reversal",
    "pull_back",
    "undone",
]

NAME = "PyTorch"


def gradients(loss: Loss, case: Case, scales: Sequence[float] = (1.0,), factor: float | None = None) -> LossGradients:
    """Return a loss and its gradients, with the reversal bypassed by a factor or as it is.

    The model is left as it was: buffers, `.grad` and PyTorch's random state are restored. Other changes that a loss
    makes (NumPy's random numbers, a `torch.Generator` of its own, a Python number that it counts) stay.

    Args:
        loss: a function of (model, batch) to a scalar.
        case: the model, the batch, the wanted parameters and the layer.
        scales: the loss is multiplied by each of them before it is differentiated.
        factor: 1: an identity in place of the reversal; 0: a layer that lets no gradient through; None: the reversal.

    Raises:
        ValueError: there is no such layer; or the parameters are inside of a reentrant checkpoint.
    """
    known = dict(case.model.named_parameters())
    bypassing = nullcontext() if factor is None else reversal_bypassed(case.model, case.layer, factor)
    with torch.enable_grad(), undone(case.model), bypassing as bypasses:
        value = loss(case.model, case.batch)
        by_scale = tuple(_differentiated(value * scale, known, case) for scale in scales)
    layer_runs, hook_runs = (0, 0) if bypasses is None else (bypasses.layer.runs, bypasses.hooks.runs)
    return LossGradients(float(value.detach()), by_scale, layer_runs + hook_runs, by_hook=hook_runs > 0 == layer_runs)


def passes_reversal(loss: Loss, case: Case) -> bool:
    """Return whether a loss's gradient passes the reversal.

    Args:
        loss: a function of (model, batch) to a scalar.
        case: the model, the batch, the parameters and the layer.
    """
    return gradients(loss, case, factor=1.0).runs > 0


def is_real_float(x: Tensor) -> bool:
    """Return whether a tensor holds real floats."""
    return x.is_floating_point()


def limits(x: Tensor) -> torch.finfo:
    """Return the spacing and the range of a tensor's floats."""
    return torch.finfo(x.dtype)


def numbers(tensor: Tensor) -> Array:
    """Return a tensor's values, in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def pull_back(layer: Callable[[Any], Any], x: Tensor) -> Pullback:
    """Call a layer once and return its derivative.

    Args:
        layer: a function of one tensor, or an `nn.Module`.
        x: a tensor of real floats.

    Raises:
        TypeError: the layer does not return a tensor.
        ValueError: the tensor that it returns has another shape than x.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = layer(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"layer: returned a {type(y).__name__}; expected a torch tensor.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {tuple(y.shape)}; expected that of x, {tuple(x.shape)}.")
    is_identity = y.dtype == x.dtype and _bits(y) == _bits(x)

    def pull(cotangent: Array) -> Array:
        if not y.requires_grad:
            return np.zeros(tuple(x.shape))
        seed = torch.tensor(cotangent).to(y)  # a copy, which the layer may change in place
        (gradient,) = torch.autograd.grad(y, x, seed, retain_graph=True, allow_unused=True)
        return np.zeros(tuple(x.shape)) if gradient is None else numbers(gradient)

    return Pullback(is_identity, pull)


def parts(model: object) -> Iterator[tuple[str, object]]:
    """Yield a module and all modules in it, with their names; nothing for any other object."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()


def names(model: nn.Module, frozen: bool = False) -> list[str]:
    """Return the names of all parameters that are trained, or of those that are frozen."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad != frozen]


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers of PyTorch's in each block, and undo what a forward pass does to buffers.

    Args:
        model: its buffers are restored, and so is PyTorch's random state, which all threads share.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    by_part = [(part, dict(part._buffers)) for part in model.modules()]  # a forward pass may replace a buffer
    devices = {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(device or 0 for device in devices)):
            torch.manual_seed(0)
            yield
    finally:
        for part, before in by_part:
            part._buffers.clear()
            part._buffers.update(before)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _differentiated(loss: Tensor, parameters: dict[str, nn.Parameter], case: Case) -> dict[str, Array]:
    names = (*case.names, *case.others)
    zeros = {name: np.zeros(tuple(parameters[name].shape)) for name in names}
    if not loss.requires_grad:
        return zeros
    is_checkpointed = _has_reentrant_checkpoint(loss)
    if is_checkpointed:  # it may hide the other parameters
        names = case.names
    tensors = torch.autograd.grad(loss, [parameters[name] for name in names], retain_graph=True, allow_unused=True)
    if is_checkpointed and any(tensor is None for tensor in tensors):
        raise ValueError(
            "model: got a reentrant checkpoint, which gives its gradients to backward() alone; expected"
            " checkpoint(…, use_reentrant=False)."
        )
    return zeros | {name: numbers(tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None}


def _has_reentrant_checkpoint(loss: Tensor) -> bool:
    seen: set[object] = set()
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
    return False


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
