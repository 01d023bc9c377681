"""From the first array that differs to where the models part, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grl.port.causes import Cause, Evidence, explain_activation
from grl.port.causes.gradients import GradientEvidence, explain_gradients
from grl.port.causes.statistics import explain_statistics
from grl.port.causes.updates import explain_updates
from grl.port.closeness import TOLERANCE
from grl.port.report import Divergence, Row
from grl.port.rows import granted
from grl.port.runs.nnx_model import JaxModel
from grl.port.runs.recording import LOSS, OUTPUT, Key, Recording
from grl.port.runs.torch_model import TorchModel
from grl.port.twins import Twins

__all__ = ["explain"]


def explain(
    row: Row,
    rows: Sequence[Row],
    twins: Twins,
    models: tuple[TorchModel, JaxModel],
    runs: tuple[Recording, Recording],
) -> Divergence:
    """Look for the causes of a difference.

    Args:
        row: the array that differs while all before it agree.
        rows: all of them.
        twins: the models as the user has them.
        models: both in float64.
        runs: theirs.
    """
    where = row.where
    causes: Sequence[Cause] = ()
    in_range = bool(np.isinf(row.absolute)) and row.real <= TOLERANCE * row.scale
    if in_range:
        pass  # experiments are made in float64, where there is nothing to explain
    elif row.kind == "activation":
        where, causes = _explain_activation(row, twins, models, runs)
    elif row.kind == "gradient":
        runs[1].reversals = models[1].reversals()
        gradients = twins.in_torch(runs[1].gradients, gradients=True)
        causes = explain_gradients(GradientEvidence(models[0], *runs, gradients))
    elif row.kind == "update":
        compared = {row.key[0] for row in rows if row.kind == "update"}
        theirs = twins.in_torch(runs[1].updates, gradients=True)
        updates = {name: update for name, update in theirs.items() if name in compared}
        weights = {name: models[0].parameter(name) for name in updates if name in runs[0].updates}
        causes = explain_updates(models[0].optimizer, weights, runs[0].gradients, updates)
    else:
        layer = twins.layers.get(row.key[0].rpartition(".")[0])
        causes = explain_statistics(models[0], row.key[0], twins.in_torch(runs[1].statistics), layer)
    kind = "gradient" if row.kind == "update" else row.kind
    return Divergence(where, kind, row.real, tuple(causes), row.kind == "update", in_range)


def _explain_activation(
    row: Row, twins: Twins, models: tuple[TorchModel, JaxModel], runs: tuple[Recording, Recording]
) -> tuple[str, list[Cause]]:
    keys = list(runs[0].activations)
    before = keys[: keys.index(row.key)]
    their_key = twins.their_key(row.key)
    evidence = Evidence(
        *models,
        key=row.key,
        their_key=their_key,
        theirs=runs[1].activations[their_key],
        ended=len(before),
        layer=twins.layers.get(row.key[0]),
        replacements=twins.weights.of(row.key[0]),
        slack=granted(row.rounding, runs[1]),
        channels=twins.channels,
    )
    causes = explain_activation(evidence)
    inside = None if evidence.proven is None else evidence.proven.module
    return _place(row, inside, before), causes


def _place(row: Row, inside: str | None, before: list[Key]) -> str:
    """The layer itself, or a layer without a counterpart that was proven to be it, or what lies between two layers."""
    is_layer = row.key not in (OUTPUT, LOSS)
    if inside is None or inside == row.key[0]:
        return row.where
    if inside and not (is_layer and row.key[0].startswith(f"{inside}.")):
        return inside
    return f"{before[-1][0]} → {row.where}" if before and is_layer else row.where
