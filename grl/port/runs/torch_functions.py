"""The calls of PyTorch's functions while a model runs: seen, numbered and changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from grl.port.runs.recording import Dropout

__all__ = ["Call", "Functions", "active_dropout", "without_dropout"]

Change = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What is done instead of a call of a function: it gets the function and its arguments, and returns a result."""


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's functions while a model ran.

    Args:
        index: which one it was.
        name: the function's.
        arguments: positional and named.
        module: the name of the innermost module that made it; "" for the model itself and for the loss.
    """

    index: int
    name: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    module: str


class Functions(TorchFunctionMode):
    """Sees, numbers and changes calls of PyTorch's functions, those of a model and those of a loss."""

    def __init__(
        self,
        changes: Mapping[int, Change],
        note: Callable[[Call], None] | None,
        inside: list[str] | None,
        without_dropout: bool,
        double: bool,
    ) -> None:
        super().__init__()
        self.changes, self.note, self.inside = changes, note, inside
        self.without_dropout, self.double = without_dropout, double
        self.dropouts: list[Dropout] = []
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.double:
            func, args, kwargs = _widened(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "dim", "size", "_set_grad_enabled"):
            return func(*args, **kwargs)
        if self.note is not None:
            self.note(Call(self.count, name, (args, kwargs), self.inside[-1] if self.inside else ""))
        change = self.changes.get(self.count)
        self.count += 1
        rate = active_dropout(name, args, kwargs)
        if rate:
            is_whole = name in ("dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")
            shape = tuple(args[0].shape) if name in _DROPOUTS and args else ()
            self.dropouts.append(Dropout(rate, shape, is_whole))
        if rate and self.without_dropout:
            args, kwargs = _at_rate_zero(func, args, kwargs)
        return func(*args, **kwargs) if change is None else change(func, args, kwargs)


def _widened(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call that asks for float32, in a model that is to compute in float64."""
    args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
    kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
    return (Tensor.double if func is Tensor.float else func), args, kwargs


_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# Where the composite functions have their rate, and whether it is active: number of the argument, and name.
_RATES = {
    **dict.fromkeys(_DROPOUTS, ((1, "p", 0.5), (2, "training", True))),
    "multi_head_attention_forward": ((10, "dropout_p", 0.0), (13, "training", True)),
    "scaled_dot_product_attention": ((4, "dropout_p", 0.0), (99, "", True)),
    "lstm": ((5, "dropout", 0.0), (6, "train", True)),
    "gru": ((5, "dropout", 0.0), (6, "train", True)),
}


def active_dropout(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return the rate of a function's dropout; 0 where there is none, or where it is off."""
    if name not in _RATES:
        return 0.0
    rate, training = (
        args[i] if len(args) > i else kwargs.get(argument, default) for i, argument, default in _RATES[name]
    )
    if name in ("lstm", "gru") and (isinstance(args[4], Tensor) or args[4] == 1):
        return 0.0  # dropout is between the layers
    return float(rate) if training else 0.0


def without_dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that has a dropout with the rate 0."""
    args, kwargs = _at_rate_zero(function, args, kwargs)
    return function(*args, **kwargs)


def _at_rate_zero(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (index, name, _), _ = _RATES[function.__name__]
    if len(args) > index:
        return (*args[:index], 0.0, *args[index + 1 :]), kwargs
    return args, {**kwargs, name: 0.0}
