"""From the first array that differs to the place where the models diverge, and the cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grl.port.causes import Cause, Evidence, explain_activation
from grl.port.causes.gradients import GradientEvidence, explain_gradients
from grl.port.causes.statistics import explain_statistics
from grl.port.causes.updates import UpdateEvidence, explain_updates
from grl.port.findings import Divergence, Row
from grl.port.rows import Runs
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import LOSS, OUTPUT, Key
from grl.port.runs.torch_model import TorchModel
from grl.port.twins import Twins

__all__ = ["Models", "explain"]


class Models(NamedTuple):
    """Both models in float64, for experiments."""

    torch: TorchModel
    nnx: JaxModel


def explain(row: Row, rows: Sequence[Row], twins: Twins, models: Models, runs: Runs) -> Divergence:
    """Find the causes of a difference by experiment.

    Args:
        row: the first array that differs.
        rows: all arrays.
        twins: the models as the user made them.
        models: both in float64.
        runs: their runs.
    """
    if np.isinf(row.absolute) and row.real <= row.allowed:  # float64, where experiments run, explains nothing
        return Divergence(row.where, _kind(row), row.real, (), row.kind == "update", in_range=True)
    if row.kind == "activation":
        return _explain_activation(row, twins, models, runs)
    if row.kind == "gradient":
        causes = _causes_of_gradient(twins, models, runs)
    elif row.kind == "update":
        compared = {row.key[0] for row in rows if row.kind == "update"}
        causes = _causes_of_update(compared, twins, models, runs)
    else:
        layer = twins.correspondence.nnx_layer(row.key[0].rpartition(".")[0])
        nnx_statistics = twins.correspondence.in_torch(runs.nnx.statistics)
        causes = tuple(explain_statistics(models.torch, row.key[0], nnx_statistics, layer))
    return Divergence(row.where, _kind(row), row.real, causes, row.kind == "update")


def _kind(row: Row) -> str:
    return "gradient" if row.kind == "update" else row.kind


def _causes_of_gradient(twins: Twins, models: Models, runs: Runs) -> tuple[Cause, ...]:
    cause = explain_gradients(
        GradientEvidence(
            models.torch,
            torch_gradients=runs.torch.gradients,
            nnx_gradients=twins.correspondence.in_torch(runs.nnx.gradients, gradients=True),
            torch_reversals=runs.torch.reversals,
            nnx_reversals=models.nnx.reversals(),
        )
    )
    return () if cause is None else (cause,)


def _causes_of_update(compared: set[str], twins: Twins, models: Models, runs: Runs) -> tuple[Cause, ...]:
    updates = twins.correspondence.in_torch(runs.nnx.updates, gradients=True)
    names = [name for name in updates if name in compared and name in runs.torch.updates]
    evidence = UpdateEvidence(
        weights={name: models.torch.parameter(name) for name in names},
        gradients={name: runs.torch.gradients[name] for name in names if name in runs.torch.gradients},
        updates={name: updates[name] for name in names},
    )
    return tuple(explain_updates(models.torch.optimizer, evidence))


def _explain_activation(row: Row, twins: Twins, models: Models, runs: Runs) -> Divergence:
    keys = list(runs.torch.activations)
    before = keys[: keys.index(row.key)]
    nnx_key = twins.correspondence.nnx_key(row.key)
    evidence = Evidence(
        models.torch,
        models.nnx,
        key=row.key,
        nnx_key=nnx_key,
        nnx_arrays=runs.nnx.activations[nnx_key],
        ended=len(before),
        layer=twins.correspondence.nnx_layer(row.key[0]),
        replacements=twins.correspondence.weights.of(row.key[0]),
        slack=row.allowed,
        channels=twins.correspondence.channels,
    )
    explanation = explain_activation(evidence)
    if explanation is None:
        return Divergence(_unexplained_place(row, evidence, before), row.kind, row.real, ())
    inside = None if explanation.call is None else explanation.call.module
    return Divergence(_place(row, inside, before), row.kind, row.real, (explanation.cause,))


def _unexplained_place(row: Row, evidence: Evidence, before: list[Key]) -> str:
    """Return the layer if nothing runs between it and the last layer that agrees, else the interval of the two."""
    name = row.key[0]
    if row.key in (OUTPUT, LOSS) or not before:
        return row.where
    outside = [call for call in evidence.between if call.module != name and not call.module.startswith(f"{name}.")]
    return f"{before[-1][0]} → {row.where}" if outside else row.where


def _place(row: Row, inside: str | None, before: list[Key]) -> str:
    """Return the layer, or the layer without a counterpart that an experiment found, or an interval of two layers.

    Args:
        row: the first activation that differs.
        inside: the module whose function an experiment changed; None if it changed none.
        before: the layers that had ended before.
    """
    is_layer = row.key not in (OUTPUT, LOSS)
    if inside is None or inside == row.key[0]:
        return row.where
    if inside and not (is_layer and row.key[0].startswith(f"{inside}.")):
        return inside
    return f"{before[-1][0]} → {row.where}" if before and is_layer else row.where
