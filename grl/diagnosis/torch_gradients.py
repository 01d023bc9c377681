"""The PyTorch half of the diagnosis: gradients as NumPy arrays, with a reversal layer and with it bypassed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from grl.arrays import Array
from grl.substitution import homes, replaced
from grl.torch_impl import function

__all__ = [
    "NAME",
    "finfo",
    "gradients",
    "is_function",
    "is_real_float",
    "names",
    "numbers",
    "parts",
    "pull_back",
    "undone",
]

NAME = "PyTorch"


def is_function(layer: Any) -> bool:
    """Whether a layer is a function, to be found where it is a global."""
    return callable(layer) and not isinstance(layer, type | nn.Module)


def is_real_float(x: Tensor) -> bool:
    """Whether an array holds real floats."""
    return x.is_floating_point()


def finfo(x: Tensor) -> Any:
    """The spacing and the range of an array's floats: `eps`, `tiny`, `max`."""
    return torch.finfo(x.dtype)


def pull_back(layer: Callable[[Any], Any], x: Tensor) -> tuple[bool, Callable[[Array], Array]]:
    """Return whether layer(x) is x bit for bit, and the function from a cotangent to x's gradient, in float64.

    Args:
        layer: called once.
        x: an array of real floats.

    Raises:
        TypeError, ValueError: what the layer returns is no tensor of x's shape.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = layer(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"layer: returned a {type(y).__name__}; expected a torch tensor.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {tuple(y.shape)}; expected that of x, {tuple(x.shape)}.")
    identity = y.dtype == x.dtype and _bits(y) == _bits(x)

    def pull(cotangent: Array) -> Array:
        if not y.requires_grad:
            return np.zeros(tuple(x.shape))
        own = torch.tensor(cotangent).to(y)  # a copy, which the layer may change in place
        (gradient,) = torch.autograd.grad(y, x, own, retain_graph=True, allow_unused=True)
        return np.zeros(tuple(x.shape)) if gradient is None else numbers(gradient)

    return identity, pull


def parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module and all modules in it, with their names; nothing of what is none."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()


def names(model: nn.Module, frozen: bool = False) -> list[str]:
    """The names of all parameters that take a gradient, or else of those that take none."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad != frozen]


def gradients(
    loss: Callable[[Any, Any], Any],
    model: nn.Module,
    batch: Any,
    wanted: Sequence[str],
    *,
    scales: Sequence[float] = (1.0,),
    factor: float | None = None,
    layer: Any = None,
    before: Any = None,
) -> tuple[float, list[dict[str, Array]], int]:
    """Return a loss, its gradients by parameter, in float64, and how often the bypassed layer would have run.

    The model is left as it was: buffers, `.grad` and PyTorch's random state are those from before. What else a loss
    changes (NumPy's random numbers, a `torch.Generator` of its own, a Python number that it counts) is not undone.

    Args:
        loss: a function of (model, batch) to a scalar.
        model: the model.
        batch: what the loss takes.
        wanted: the names of the parameters.
        scales: what the loss is multiplied by before it is differentiated, one for each of the gradients.
        factor: what the reversal is made: 1, an identity; 0, a layer that lets no gradient through; None, what it is.
        layer: the layer, if it is not one of grl's: a name or object of a submodule, a class, or a function.
        before: what came with the layer as it is: it is returned if the layer does not run.

    Raises:
        ValueError: there is no such layer; or the parameters are inside of a reentrant checkpoint.
    """
    runs: list[None] = []
    known = dict(model.named_parameters())
    parameters: list[Tensor] = [known[name] for name in wanted]
    instead = nullcontext() if factor is None else _replaced_layer(model, layer, factor, runs)
    with torch.enable_grad(), undone(model), instead:
        value = loss(model, batch)
        found = [_differentiated(value * scale, parameters) for scale in scales]
    if before is not None and not runs:
        return before  # type: ignore[no-any-return]
    return float(value.detach()), [dict(zip(wanted, arrays, strict=True)) for arrays in found], len(runs)


def _differentiated(loss: Tensor, parameters: list[Tensor]) -> list[Array]:
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if any(gradient is None for gradient in found) and _has_reentrant_checkpoint(loss):
            raise ValueError(
                "model: got a reentrant checkpoint, which gives its gradients to backward() alone; expected"
                " checkpoint(…, use_reentrant=False)."
            )
    return [
        np.zeros(tuple(parameter.shape)) if gradient is None else numbers(gradient)
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


def _has_reentrant_checkpoint(loss: Tensor) -> bool:
    seen: set[Any] = set()
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


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers of PyTorch's in each block, and undo what a forward pass does to buffers."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    named = [(part, dict(part._buffers)) for part in model.modules()]  # a forward pass may put another one in its place
    devices = {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(device or 0 for device in devices)):
            torch.manual_seed(0)
            yield
    finally:
        for part, before in named:
            part._buffers.clear()
            part._buffers.update(before)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


@contextmanager
def _replaced_layer(model: nn.Module, layer: Any, factor: float, runs: list[None]) -> Iterator[None]:
    def forward(*arguments: Any, **named: Any) -> Any:
        runs.append(None)
        x = [*arguments, *named.values()][0]
        return x if factor else pytree.tree_map_only(Tensor, Tensor.detach, x)

    def scale(cotangent: Tensor, *_: Any) -> Tensor:
        runs.append(None)
        return cotangent if factor else torch.zeros_like(cotangent)

    if isinstance(layer, MethodType) and isinstance(layer.__self__, type):  # Function.apply, under whatever name
        layer = layer.__self__
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # what is compiled already would not see the replacement
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if layer is None:
            stack.enter_context(replaced(function, "_scale", scale))  # both directions of all of grl's forms
        elif isinstance(layer, type) and issubclass(layer, torch.autograd.Function):

            def backward(ctx: Any, *cotangents: Any) -> Any:
                return scale(cotangents[0]), *[None] * (len(ctx.needs_input_grad) - 1)

            stack.enter_context(replaced(layer, "backward", staticmethod(backward)))
        elif is_function(layer):
            for module, name in homes(layer):
                stack.enter_context(replaced(module, name, forward))
        else:
            for part in _chosen(model, layer):
                stack.enter_context(replaced(part, "forward", forward))
                for hooks in ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"):
                    stack.enter_context(replaced(part, hooks, {}))
        yield


def _chosen(model: nn.Module, layer: Any) -> list[nn.Module]:
    chosen = [
        part
        for name, part in model.named_modules()
        if part is layer or name == layer or (isinstance(layer, type) and isinstance(part, layer))
    ]
    if not chosen or model in chosen:
        raise ValueError(f"layer: got {layer!r}; expected a submodule of the model, its name, or its class.")
    return chosen


def numbers(tensor: Tensor) -> Array:
    """A tensor's values, in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
