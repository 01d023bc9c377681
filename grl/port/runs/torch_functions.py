"""The calls of PyTorch's functions while a model runs: numbered, recorded and changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from grl.port.runs.perturbation import Perturbation
from grl.port.runs.recording import Dropout

__all__ = ["Args", "Call", "Change", "Function", "Functions", "Kwargs", "active_dropout", "without_dropout"]

Function: TypeAlias = Callable[..., Any]
"""One of PyTorch's functions."""

Args: TypeAlias = tuple[Any, ...]
"""Its positional arguments."""

Kwargs: TypeAlias = dict[str, Any]
"""Its named arguments."""

Change: TypeAlias = Callable[[Function, Args, Kwargs], Any]
"""Replaces a call: it gets the function and its arguments, and returns a result."""


@dataclass(frozen=True)
class Call:
    """A call of one of PyTorch's functions while a model ran.

    Args:
        index: the number of the call.
        name: the function's name.
        arguments: positional and named.
        module: the name of the innermost module that made the call; "" for the model itself and for the loss.
    """

    index: int
    name: str
    arguments: tuple[Args, Kwargs]
    module: str


class Functions(TorchFunctionMode):
    """Numbers, records and changes the calls of PyTorch's functions by a model and a loss, in this thread.

    Args:
        changes: by the number of a call, what replaces it.
        note: gets each call; None: nothing.
        inside: the names of the modules that are running, outermost first.
        without_dropout: whether dropout is off in any case.
        double: whether a call that asks for float32 gets float64.
        perturbation: moves results and cotangents by a unit in the last place.
    """

    def __init__(
        self,
        changes: Mapping[int, Change],
        note: Callable[[Call], None] | None,
        inside: Sequence[str],
        without_dropout: bool,
        double: bool,
        perturbation: Perturbation | None = None,
    ) -> None:
        super().__init__()
        self.changes, self.note, self.inside = changes, note, inside
        self.without_dropout, self.double, self.perturbation = without_dropout, double, perturbation
        self.dropouts: list[Dropout] = []
        self.count = 0

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
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
        result = func(*args, **kwargs) if change is None else change(func, args, kwargs)
        if self.perturbation is not None:
            self.perturbation.perturb(result, (*args, *kwargs.values()))
        return result


def _widened(func: Function, args: Args, kwargs: Kwargs) -> tuple[Function, Args, Kwargs]:
    """Return a call with float64 wherever it asks for float32."""
    args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
    kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
    return (Tensor.double if func is Tensor.float else func), args, kwargs


_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
# (number, name, default) of the argument that is the rate, and of the one that says whether dropout is active.
_RATES: dict[str, tuple[tuple[int, str, float], tuple[int, str, bool]]] = {
    **dict.fromkeys(_DROPOUTS, ((1, "p", 0.5), (2, "training", True))),
    "multi_head_attention_forward": ((10, "dropout_p", 0.0), (13, "training", True)),
    "scaled_dot_product_attention": ((4, "dropout_p", 0.0), (99, "", True)),
    "lstm": ((5, "dropout", 0.0), (6, "train", True)),
    "gru": ((5, "dropout", 0.0), (6, "train", True)),
}


def active_dropout(name: str, args: Args, kwargs: Kwargs) -> float:
    """Return the rate of a function's dropout; 0 if it has none, or if it is off."""
    if name not in _RATES:
        return 0.0
    rate, training = (
        args[number] if len(args) > number else kwargs.get(argument, default)
        for number, argument, default in _RATES[name]
    )
    if name in ("lstm", "gru") and (isinstance(args[4], Tensor) or args[4] == 1):
        return 0.0  # dropout is between the layers
    return float(rate) if training else 0.0


def without_dropout(function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Call a function that has a dropout with the rate 0."""
    args, kwargs = _at_rate_zero(function, args, kwargs)
    return function(*args, **kwargs)


def _at_rate_zero(function: Function, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    (number, name, _), _ = _RATES[function.__name__]
    if len(args) > number:
        return (*args[:number], 0.0, *args[number + 1 :]), kwargs
    return args, {**kwargs, name: 0.0}
