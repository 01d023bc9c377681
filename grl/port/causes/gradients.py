"""Causes in a gradient while all activations agree: the reversal is missing or doubled, or its λ differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from grl.diagnosis.reversal import signed
from grl.port.causes.cause import Cause
from grl.port.closeness import TOLERANCE
from grl.port.runs.recording import Array
from grl.port.runs.torch_model import TorchModel

__all__ = ["GradientEvidence", "explain_gradients"]


@dataclass(frozen=True)
class GradientEvidence:
    """Gradients that differ while all activations agree; by PyTorch's names and in its layouts.

    Args:
        torch: the PyTorch model in float64.
        torch_gradients: its gradients.
        nnx_gradients: the nnx model's.
        torch_reversals: how many layers with a backward rule of their own PyTorch's gradient passes.
        nnx_reversals: the same for the nnx model.
    """

    torch: TorchModel
    torch_gradients: Mapping[str, Array]
    nnx_gradients: Mapping[str, Array]
    torch_reversals: int
    nnx_reversals: int


def explain_gradients(evidence: GradientEvidence) -> Cause | None:
    """Scale what flows back into one function after the other; a scale that explains all gradients is a reversal's.

    A gradient is a + c·b, where c is the factor on one edge of the graph. Two backward passes give a and b, and least
    squares give the c of the nnx model. The factor explains the divergence if no residual is left.
    """
    factor = _factor(evidence)
    is_reversed = max(evidence.torch_reversals, evidence.nnx_reversals) > 0
    if factor is None or (not is_reversed and factor >= -TOLERANCE):
        return None  # a gradient that is cut or scaled where nothing reverses it is no λ
    return _named(factor, evidence)


def _factor(evidence: GradientEvidence) -> float | None:
    """The factor on the last edge on which one factor explains all gradients; None if there is no such edge."""
    names = [name for name in evidence.nnx_gradients if name in evidence.torch_gradients]
    torch_gradient = np.concatenate([evidence.torch_gradients[name].ravel() for name in names])
    nnx_gradient = np.concatenate([evidence.nnx_gradients[name].ravel() for name in names])
    if not np.isfinite(nnx_gradient).all():
        return None
    indices = [call.index for call, _ in evidence.torch.calls()][::-1]
    for blocked in evidence.torch.gradients_by_edge(0.0, indices, names):
        zeros = {name: np.zeros_like(evidence.nnx_gradients[name]) for name in names}
        without = np.concatenate([blocked.get(name, zeros[name]).ravel() for name in names])
        through = torch_gradient - without
        square = float(through @ through)
        if not square:
            continue
        factor = float(through @ (nnx_gradient - without)) / square
        residual = np.abs(without + factor * through - nnx_gradient).max()
        if residual <= 100 * TOLERANCE * np.abs(nnx_gradient).max():
            return factor
    return None


def _named(factor: float, evidence: GradientEvidence) -> Cause:
    """Name the reversal that is missing, doubled, or has another λ, by the factor and the number of reversals."""
    counts = evidence.torch_reversals, evidence.nnx_reversals
    words = f"where PyTorch passes the gradient back, the nnx model passes {signed(factor)} times that"
    count = f"{counts[0]} in PyTorch, {counts[1]} in nnx"
    if factor > 0 or abs(factor) < TOLERANCE:
        return Cause("coefficient", f"{words}: λ' = {factor:.6g}·λ")
    if max(counts) >= 2 and counts[0] != counts[1] and min(counts) >= 1:
        return Cause("reversal_doubled", f"{words}; layers with a backward rule of their own: {count}")
    if counts[0] == counts[1] and counts[0]:
        return Cause("coefficient", f"{words}, so that λ has the other sign")
    return Cause("reversal_missing", f"{words}; layers with a backward rule of their own: {count}")
