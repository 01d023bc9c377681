"""Causes in a gradient while all activations agree: the reversal is missing or doubled, or its λ differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grl.diagnosis.reversal import signed
from grl.port.causes.cause import Cause
from grl.port.closeness import TOLERANCE
from grl.port.runs.recording import Array, Recording
from grl.port.runs.torch_model import TorchModel

__all__ = ["GradientEvidence", "explain_gradients"]


@dataclass(frozen=True)
class GradientEvidence:
    """Gradients that differ while all activations agree.

    Args:
        torch: the PyTorch model in float64.
        ours: its run.
        theirs: the nnx model's.
        gradients: theirs, by PyTorch's names and in its layouts.
    """

    torch: TorchModel
    ours: Recording
    theirs: Recording
    gradients: Mapping[str, Array]


def explain_gradients(evidence: GradientEvidence) -> list[Cause]:
    """Scale what flows back into one function after the other; a scale that explains all gradients is a reversal's.

    A gradient is a + c·b where c is the factor on one edge of the graph: two backward passes give a and b, and least
    squares the c of the nnx model. It explains the divergence if nothing is left.
    """
    names = [name for name in evidence.gradients if name in evidence.ours.gradients]
    ours = np.concatenate([evidence.ours.gradients[name].ravel() for name in names])
    theirs = np.concatenate([evidence.gradients[name].ravel() for name in names])
    if not np.isfinite(theirs).all():
        return []
    calls = [call.index for call, _ in evidence.torch.calls()][::-1]
    found: list[tuple[float, int]] = []
    for index, blocked in evidence.torch.gradients_by_edge(0.0, calls, names):
        without = np.concatenate([blocked.get(n, np.zeros_like(evidence.gradients[n])).ravel() for n in names])
        through = ours - without
        square = float(through @ through)
        if not square:
            continue
        factor = float(through @ (theirs - without)) / square
        rest = np.abs(without + factor * through - theirs).max()
        if rest <= 100 * TOLERANCE * np.abs(theirs).max():
            found.append((factor, index))
            break
    is_reversed = max(evidence.ours.reversals, evidence.theirs.reversals) > 0
    if not found or (not is_reversed and found[0][0] >= -TOLERANCE):
        return []  # a gradient that is cut or scaled where nothing reverses it is no λ
    return [_named(found[0][0], evidence)]


def _named(factor: float, evidence: GradientEvidence) -> Cause:
    """Name the reversal that is missing, doubled, or has another λ, by the factor and by how many there are."""
    counts = evidence.ours.reversals, evidence.theirs.reversals
    words = f"where PyTorch passes the gradient back, the nnx model passes {signed(factor)} times that"
    count = f"{counts[0]} in PyTorch, {counts[1]} in nnx"
    if factor > 0 or abs(factor) < TOLERANCE:
        return Cause("coefficient", f"{words}: λ' = {factor:.6g}·λ")
    if max(counts) >= 2 and counts[0] != counts[1] and min(counts) >= 1:
        return Cause("reversal_doubled", f"{words}; layers with a backward rule of their own: {count}")
    if counts[0] == counts[1] and counts[0]:
        return Cause("coefficient", f"{words}, so that λ has the other sign")
    return Cause("reversal_missing", f"{words}; layers with a backward rule of their own: {count}")
