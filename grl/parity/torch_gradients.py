"""The PyTorch half of the diagnosis: gradients as NumPy arrays, with a reversal layer and with it bypassed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grl.parity.reversal import homes, replaced
from grl.torch_impl import function

__all__ = ["NAME", "epsilon", "gradients", "is_real_float", "names", "parts", "pull_back", "undone"]

NAME = "PyTorch"
Array = NDArray[Any]


def is_real_float(x: Tensor) -> bool:
    """Whether an array holds real floats."""
    return x.is_floating_point()


def epsilon(x: Tensor) -> float:
    """The relative spacing of an array's floats."""
    return torch.finfo(x.dtype).eps


def pull_back(layer: Callable[[Any], Any], x: Tensor, cotangents: Sequence[Array]) -> tuple[bool, list[Array]]:
    """Return whether layer(x) is x bit for bit, and the gradient of x for each cotangent, in float64.

    Args:
        layer: called once.
        x: an array of real floats.
        cotangents: each of x's shape.

    Raises:
        TypeError, ValueError: what the layer returns is no tensor of x's shape.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = layer(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"layer: returned a {type(y).__name__}; accepted is a torch tensor.")
    if y.shape != x.shape:
        raise ValueError(f"layer: returned the shape {tuple(y.shape)}; accepted is that of x, {tuple(x.shape)}.")
    identity = y.dtype == x.dtype and _bits(y) == _bits(x)

    def pull(cotangent: Array) -> Array:
        if not y.requires_grad:
            return np.zeros(tuple(x.shape))
        (gradient,) = torch.autograd.grad(y, x, torch.as_tensor(cotangent).to(y), retain_graph=True, allow_unused=True)
        return np.zeros(tuple(x.shape)) if gradient is None else _numpy(gradient)

    return identity, [pull(cotangent) for cotangent in cotangents]


def parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a module and all modules in it, with their names; nothing of what is none."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()


def names(model: nn.Module) -> list[str]:
    """The names of all parameters that take a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def gradients(
    loss: Callable[[Any, Any], Any],
    model: nn.Module,
    batch: Any,
    wanted: Sequence[str],
    *,
    scales: Sequence[float] = (1.0,),
    bypass: bool = False,
    layer: Any = None,
) -> tuple[float, list[dict[str, Array]], int]:
    """Return a loss, its gradients by parameter, in float64, and how often the bypassed layer would have run.

    The model is left as it was: buffers, `.grad` and the random state are those from before.

    Args:
        loss: a function of (model, batch) to a scalar.
        model: the model.
        batch: what the loss takes.
        wanted: the names of the parameters.
        scales: what the loss is multiplied by before it is differentiated, one for each of the gradients.
        bypass: make the reversal an identity.
        layer: the layer to bypass, if it is not one of grl's: a name or object of a submodule, a class, or a function.
    """
    runs: list[None] = []
    known = dict(model.named_parameters())
    parameters: list[Tensor] = [known[name] for name in wanted]
    with torch.enable_grad(), undone(model), _bypassed(model, layer, runs) if bypass else nullcontext():
        value = loss(model, batch)
        found = [_differentiated(value * scale, parameters) for scale in scales]
    return float(value.detach()), [dict(zip(wanted, arrays, strict=True)) for arrays in found], len(runs)


def _differentiated(loss: Tensor, parameters: list[Tensor]) -> list[Array]:
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [
        np.zeros(tuple(parameter.shape)) if gradient is None else _numpy(gradient)
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers in each block, and undo what a forward pass changes."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(device or 0 for device in devices)):
            torch.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _bypassed(model: nn.Module, layer: Any, runs: list[None]) -> Iterator[None]:
    def identity(*arguments: Any, **named: Any) -> Any:
        runs.append(None)
        return [*arguments, *named.values()][0]

    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # what is compiled already would not see the replacement
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if layer is None:
            stack.enter_context(replaced(function, "_scale", identity))  # both directions of all of grl's forms
        elif isinstance(layer, type) and issubclass(layer, torch.autograd.Function):

            def backward(ctx: Any, *cotangents: Any) -> Any:
                runs.append(None)
                return cotangents[0], *[None] * (len(ctx.needs_input_grad) - 1)

            stack.enter_context(replaced(layer, "backward", staticmethod(backward)))
        elif isinstance(layer, FunctionType | BuiltinFunctionType):
            for module, name in homes(layer):
                stack.enter_context(replaced(module, name, identity))
        else:
            for part in _chosen(model, layer):
                stack.enter_context(replaced(part, "forward", identity))
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
        raise ValueError(f"layer: got {layer!r}; accepted is a submodule of the model, its name, or its class.")
    return chosen


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
