"""Causes in running statistics after a training step: the convention of the momentum, and the biased variance."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grl.port.causes.cause import Cause
from grl.port.causes.evidence import arguments
from grl.port.closeness import TOLERANCE, distance, size
from grl.port.runs.recording import Array
from grl.port.runs.torch_functions import Args, Function, Kwargs
from grl.port.runs.torch_model import TorchModel

__all__ = ["explain_statistics"]


def explain_statistics(torch_model: TorchModel, where: str, nnx: Mapping[str, Array], layer: object) -> list[Cause]:
    """Update the running statistics with another momentum, and with the biased variance.

    Args:
        torch_model: the PyTorch model in float64.
        where: the name of the statistic that differs.
        nnx: the nnx model's statistics, by PyTorch's names.
        layer: the nnx layer that holds it.
    """
    module = where.rpartition(".")[0]
    calls = [call for call, _ in torch_model.calls() if call.name == "batch_norm" and call.module == module]
    if not calls:
        return []
    momentum = float(arguments("batch_norm", *calls[0].arguments).get("momentum", 0.1))
    is_cumulative = _is_cumulative(torch_model, module)
    nnx_momentum = getattr(layer, "momentum", None)
    configured = (nnx_momentum, 1 - nnx_momentum) if isinstance(nnx_momentum, float) else ()
    momenta = dict.fromkeys(
        round(one, 12) for one in (momentum, 1 - momentum, *configured, 0.1, 0.01, 0.001, 0.9, 0.99)
    )
    names = [name for name in (where, f"{module}.running_mean", f"{module}.running_var") if name in nnx]
    for biased in (False, True):
        for other in momenta:
            if other == momentum and not biased:
                continue
            change = partial(_updated, momentum=other, biased=biased)
            statistics = torch_model.statistics(dict.fromkeys((call.index for call in calls), change))
            if all(_is_same(statistics[name], nnx[name]) for name in names):
                return _causes(None if is_cumulative else momentum, other, biased, other != momentum)
    return []


def _is_cumulative(torch_model: TorchModel, module: str) -> bool:
    """Whether a batch norm averages all batches: its momentum is None, and the function gets 1 / batches."""
    layer = torch_model.model.get_submodule(module)
    return getattr(layer, "momentum", 0.1) is None


def _is_same(torch_array: Array, nnx_array: Array) -> bool:
    return distance(torch_array, nnx_array) <= 100 * TOLERANCE * max(size(nnx_array), 1e-30)


def _causes(momentum: float | None, other: float, biased: bool, is_other: bool) -> list[Cause]:
    causes = []
    if is_other:
        value = "None, a cumulative average" if momentum is None else f"{momentum:g}"
        words = f"PyTorch's momentum is {value}, and with {other:g} it gives the nnx model's statistics"
        causes.append(Cause("batchnorm_momentum", words))
    if biased:
        words = "with the biased variance PyTorch gives the nnx model's statistics"
        causes.append(Cause("batchnorm_variance", words))
    return causes


def _updated(function: Function, args: Args, kwargs: Kwargs, momentum: float, biased: bool) -> Any:
    """Batch norm whose running statistics are kept with another momentum, or with the biased variance."""
    given = arguments("batch_norm", args, kwargs)
    mean, var, x = given["running_mean"], given["running_var"], given["input"]
    if not given.get("training") or mean is None:
        return function(**given)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    new: tuple[Tensor, Tensor] = (x.mean(axes), x.var(axes, correction=0 if biased else 1))
    result = function(**{**given, "running_mean": None, "running_var": None})
    with torch.no_grad():
        for running, value in zip((mean, var), new, strict=True):
            running.lerp_(value, momentum)
    return result
