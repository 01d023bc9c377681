"""Bypass a reversal in PyTorch for the calls of one context: grl's layers, tensor hooks that reverse, or any layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from types import MethodType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from grl.bypass import Bypass
from grl.substitution import Local, homes, local_calls, replaced
from grl.torch_impl.bypass import bypassed

__all__ = ["Bypasses", "is_function", "reversal_bypassed"]


class Bypasses(NamedTuple):
    """What is bypassed in a block.

    Args:
        layer: the layer.
        hooks: tensor hooks that reverse.
    """

    layer: Bypass
    hooks: Bypass


@contextmanager
def reversal_bypassed(model: nn.Module, layer: object, factor: float) -> Iterator[Bypasses]:
    """Give the gradient a factor in place of what a reversal makes of it, for the time of the block.

    Other threads keep their gradients. Compiled functions of all threads run eagerly meanwhile.

    Args:
        model: the model.
        layer: a name or object of a submodule, a class, or a function. None: grl's reversals, and all tensor hooks
            that are registered in the block and turn a gradient's sign.
        factor: 1: an identity in place of the reversal; 0: a layer that lets no gradient through.

    Raises:
        ValueError: there is no such layer.
    """
    with _uncompiled(), ExitStack() as stack:
        hooks = Bypass(factor)
        if layer is None:
            bypass = stack.enter_context(bypassed(factor))
            stack.enter_context(_HooksBypassed(hooks))
        else:
            bypass = Bypass(factor)
            local = stack.enter_context(local_calls())
            for owner, name, replacement in _replacements(model, layer, bypass, local):
                stack.enter_context(replaced(owner, name, replacement))
        yield Bypasses(bypass, hooks)


def is_function(layer: object) -> TypeGuard[Callable[..., object]]:
    """Return whether a layer is a function, which is found where it is a global."""
    return callable(layer) and not isinstance(layer, type | nn.Module)


_uncompiled_lock = Lock()
_uncompiled_blocks = 0
_stance = ExitStack()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled functions eagerly: they would not see the bypass. PyTorch has one such switch for all threads."""
    global _uncompiled_blocks
    with _uncompiled_lock:
        if not _uncompiled_blocks:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _uncompiled_blocks += 1
    try:
        yield
    finally:
        with _uncompiled_lock:
            _uncompiled_blocks -= 1
            if not _uncompiled_blocks:
                _stance.close()


class _HooksBypassed(TorchFunctionMode):
    """In this thread, register every tensor hook so that a reversal in it is bypassed."""

    def __init__(self, bypass: Bypass) -> None:
        super().__init__()
        self.bypass = bypass

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.register_hook:
            tensor, hook = args
            args = (tensor, self._bypassed_hook(hook))
        return function(*args, **(kwargs or {}))

    def _bypassed_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        def call(gradient: Tensor) -> Tensor | None:
            changed = hook(gradient)
            reverses = isinstance(changed, Tensor) and bool((changed.double() * gradient.double()).sum() < 0)
            if not reverses:
                return changed
            self.bypass.runs += 1
            return gradient * self.bypass.factor

        return call


def _replacements(
    model: nn.Module, layer: object, bypass: Bypass, local: Local
) -> Iterator[tuple[object, str, object]]:
    """Yield the owner, the name and the new value of every attribute that has to change for a layer to be bypassed."""

    def forward(*arguments: object, **named: object) -> object:
        bypass.runs += 1
        x = arguments[0] if arguments else next(iter(named.values()))
        return x if bypass.factor else pytree.tree_map_only(Tensor, Tensor.detach, x)

    if isinstance(layer, MethodType) and isinstance(layer.__self__, type):  # Function.apply, under whatever name
        layer = layer.__self__
    if isinstance(layer, type) and issubclass(layer, Function):
        yield from _of_function(layer, bypass, local)
    elif is_function(layer):
        for module, name in homes(layer):
            yield module, name, local(forward, layer)
    else:
        for part in _chosen(model, layer):
            # PyTorch calls `_compiled_call_impl`, if it is set, in place of the hooks and of `forward`.
            call = part._compiled_call_impl or part._call_impl
            yield part, "_compiled_call_impl", local(forward, call)
            yield part, "forward", local(forward, part.forward)


def _of_function(rule: type[Function], bypass: Bypass, local: Local) -> Iterator[tuple[object, str, object]]:
    """Mark the calls of this context, and give the gradients of the marked calls the factor.

    A backward pass may run in a thread of autograd's. The mark tells it which calls to bypass.
    """
    has_context = getattr(rule, "setup_context", None) is not getattr(Function, "setup_context", None)
    calls = "setup_context" if has_context else "forward"
    forward: Callable[..., Any] = getattr(rule, calls)
    gradient = "backward" if rule.vjp is Function.vjp else "vjp"
    backward: Callable[..., Any] = getattr(rule, gradient)

    def mark(ctx: Any, *arguments: object, **named: object) -> object:
        ctx.grl_bypass = bypass
        return forward(ctx, *arguments, **named)

    def bypassed_backward(ctx: Any, *cotangents: Tensor) -> object:
        if getattr(ctx, "grl_bypass", None) is not bypass:
            return backward(ctx, *cotangents)
        bypass.runs += 1
        cotangent = cotangents[0] if bypass.factor else torch.zeros_like(cotangents[0])
        return cotangent, *[None] * (len(ctx.needs_input_grad) - 1)

    yield rule, calls, staticmethod(local(mark, forward))
    yield rule, gradient, staticmethod(bypassed_backward)


def _chosen(model: nn.Module, layer: object) -> list[nn.Module]:
    chosen = [
        part
        for name, part in model.named_modules()
        if part is layer or name == layer or (isinstance(layer, type) and isinstance(part, layer))
    ]
    if not chosen or model in chosen:
        raise ValueError(f"layer: got {layer!r}; expected a submodule of the model, its name, or its class.")
    return chosen
