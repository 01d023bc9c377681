"""Causes in running statistics after a training step: the convention of the momentum, and the biased variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grl.port.causes.cause import Cause
from grl.port.causes.evidence import arguments
from grl.port.closeness import TOLERANCE, distance, size
from grl.port.runs.recording import Array
from grl.port.runs.torch_functions import Change
from grl.port.runs.torch_model import TorchModel

__all__ = ["explain_statistics"]


def explain_statistics(torch_model: TorchModel, where: str, theirs: Mapping[str, Array], layer: Any) -> list[Cause]:
    """Update the running statistics with another momentum, and with the biased variance.

    Args:
        torch_model: the PyTorch model in float64.
        where: the name of the statistic that differs.
        theirs: the nnx model's statistics, by PyTorch's names.
        layer: the nnx layer that holds it.
    """
    module = where.rpartition(".")[0]
    calls = [c for c, _ in torch_model.calls() if c.name == "batch_norm" and c.module == module]
    if not calls:
        return []
    given = arguments("batch_norm", *calls[0].arguments)
    own = float(given.get("momentum", 0.1))
    told = getattr(layer, "momentum", None)
    momenta = [own, 1 - own, *((told, 1 - told) if isinstance(told, float) else ()), 0.1, 0.01, 0.001, 0.9, 0.99]
    names = [name for name in (where, f"{module}.running_mean", f"{module}.running_var") if name in theirs]

    def explains(momentum: float, biased: bool) -> bool:
        change = _updating(momentum, biased)
        ours = torch_model.statistics(dict.fromkeys((call.index for call in calls), change))
        return all(distance(ours[n], theirs[n]) <= 100 * TOLERANCE * max(size(theirs[n]), 1e-30) for n in names)

    for biased in (False, True):
        for momentum in dict.fromkeys(round(m, 12) for m in momenta):
            if (momentum != own or biased) and explains(momentum, biased):
                causes = []
                if momentum != own:
                    words = f"PyTorch's momentum is {own:g}, and with {momentum:g} it gives the nnx model's statistics"
                    causes.append(Cause("batchnorm_momentum", words))
                if biased:
                    words = "with the biased variance PyTorch gives the nnx model's statistics"
                    causes.append(Cause("batchnorm_variance", words))
                return causes
    return []


def _updating(momentum: float, biased: bool) -> Change:
    """Batch norm whose running statistics are kept with another momentum, or with the biased variance."""

    def change(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    return change
