"""Causes in the optimiser's step: to what the weight decay is added, and where epsilon stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from grl.port.causes.cause import Cause
from grl.port.runs.recording import Array

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["Rule", "UpdateEvidence", "explain_updates", "rule_of"]

_LITTLE = 1e-3
"""The part of a divergence that may stay unexplained: the rule divides by small numbers."""


@dataclass(frozen=True)
class UpdateEvidence:
    """A step that differs while the gradients agree, by PyTorch's names and in its layouts.

    Args:
        weights: before the step.
        gradients: at the step.
        updates: what the nnx model's optimiser added.
    """

    weights: Mapping[str, Array]
    gradients: Mapping[str, Array]
    updates: Mapping[str, Array]

    @property
    def names(self) -> list[str]:
        """The parameters of which all three are known."""
        return [name for name in self.updates if name in self.weights and name in self.gradients]

    def residual(self, rule: Rule) -> float:
        """Return the largest difference between the steps of a rule and the nnx model's."""
        with np.errstate(all="ignore"):
            gaps = [
                np.abs(rule.update(self.weights[name], self.gradients[name]) - self.updates[name]).max()
                for name in self.names
            ]
        return float(max(gaps))


@dataclass(frozen=True)
class Rule:
    """The first step of SGD, Adam or AdamW: what it adds to a weight p with the gradient g.

    Adam: −η·m̂ / (√(v̂ + ε′) + ε), where after one step m̂ = g and v̂ = g². The decay λ is added to g (coupled: g + λ·p),
    or −η·λ·p is added to the result (decoupled).

    Args:
        adam: whether the gradient is divided by its size.
        rate: η.
        decay: λ.
        coupled: whether the decay is added to the gradient.
        epsilon: ε, outside the root.
        epsilon_root: ε′, inside the root.
    """

    adam: bool
    rate: float
    decay: float
    coupled: bool
    epsilon: float
    epsilon_root: float = 0.0

    def update(self, weight: Array, gradient: Array) -> Array:
        """Return what is added to the weight."""
        if self.coupled:
            gradient = gradient + self.decay * weight
        direction = gradient
        if self.adam:
            with np.errstate(all="ignore"):
                direction = gradient / (np.sqrt(gradient**2 + self.epsilon_root) + self.epsilon)
        rest = 0.0 if self.coupled else self.decay
        added: Array = -self.rate * (np.nan_to_num(direction) + rest * weight)
        return added


def rule_of(optimizer: Optimizer | None) -> Rule | None:
    """Return the rule of a PyTorch optimiser's first group; None if it is neither SGD nor Adam nor AdamW."""
    if optimizer is None:
        return None
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return Rule(True, float(group["lr"]), group["weight_decay"], not decoupled, group["eps"])
    if isinstance(optimizer, torch.optim.SGD):
        return Rule(False, float(group["lr"]), group["weight_decay"], True, 0.0)
    return None


def explain_updates(optimizer: Optimizer | None, evidence: UpdateEvidence) -> list[Cause]:
    """Compute a first step with the decay elsewhere and with other epsilons, until it is the nnx model's.

    Args:
        optimizer: PyTorch's.
        evidence: the step that differs.
    """
    rule = rule_of(optimizer)
    if rule is None or not evidence.names:
        return []
    residual = evidence.residual(rule)
    for other in _others(rule, evidence):
        if other != rule and evidence.residual(other) <= _LITTLE * residual:
            return list(_differences(rule, other))
    return []


def _others(rule: Rule, evidence: UpdateEvidence) -> Iterator[Rule]:
    decays = dict.fromkeys((rule.decay, 0.0, 1e-2, 1e-4, 5e-4, 1e-3, _solved_decay(rule, evidence)))
    decayed = [replace(rule, decay=decay, coupled=coupled) for decay in decays for coupled in (True, False)]
    yield from decayed
    if not rule.adam:
        return
    outside, inside = _solved_epsilons(rule, evidence)
    yield replace(rule, epsilon=outside)
    yield replace(rule, epsilon=0.0, epsilon_root=inside)
    epsilons = dict.fromkeys((rule.epsilon, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-10, 1e-12, 1e-16, 0.0))
    for base in (rule, *decayed):
        for epsilon in epsilons:
            yield replace(base, epsilon=epsilon)
            yield replace(base, epsilon=0.0, epsilon_root=epsilon)
            yield replace(base, epsilon_root=epsilon)
            yield replace(base, epsilon=epsilon, epsilon_root=epsilon)


def _solved_decay(rule: Rule, evidence: UpdateEvidence) -> float:
    """Solve for the decoupled decay that is nearest to the updates."""
    bare = replace(rule, decay=0.0)
    names = evidence.names
    rest = np.concatenate(
        [
            (evidence.updates[name] - bare.update(evidence.weights[name], evidence.gradients[name])).ravel()
            for name in names
        ]
    )
    weight = np.concatenate([evidence.weights[name].ravel() for name in names])
    square = float(weight @ weight)
    return float(-(rest @ weight) / square / rule.rate) if square and rule.rate else 0.0


def _solved_epsilons(rule: Rule, evidence: UpdateEvidence) -> tuple[float, float]:
    """Solve for ε and for ε′, each alone, by the median over all elements: η·|g| / |Δp| = √(g² + ε′) + ε."""
    coupled = rule.decay if rule.coupled else 0.0
    decoupled = 0.0 if rule.coupled else rule.rate * rule.decay
    gradients, steps = [], []
    for name in evidence.names:
        gradients.append((evidence.gradients[name] + coupled * evidence.weights[name]).ravel())
        steps.append((evidence.updates[name] + decoupled * evidence.weights[name]).ravel())
    gradient, step = np.concatenate(gradients), np.concatenate(steps)
    moved = (gradient != 0) & (step != 0)
    if not moved.any():
        return rule.epsilon, 0.0
    size = np.abs(gradient[moved])
    root = rule.rate * size / np.abs(step[moved])
    outside, inside = np.median(root - size), np.median(root**2 - size**2)
    return _rounded(outside), _rounded(inside)


def _rounded(number: float) -> float:
    return float(f"{max(number, 0.0):.6g}")


def _differences(rule: Rule, other: Rule) -> Iterator[Cause]:
    if (rule.decay, rule.coupled) != (other.decay, other.coupled) and (rule.decay or other.decay):
        places = {True: "added to the gradient", False: "subtracted from the weight itself"}
        yield Cause(
            "weight_decay",
            f"in PyTorch {rule.decay:g} is {places[rule.coupled]}, and the nnx model's step is that of "
            f"{other.decay:.6g} {places[other.coupled]}",
        )
    if (rule.epsilon, rule.epsilon_root) != (other.epsilon, other.epsilon_root):
        yield Cause(
            "optimizer_epsilon",
            f"PyTorch has {rule.epsilon:g} outside the root, and the nnx model's step is that of "
            f"{other.epsilon:g} outside and {other.epsilon_root:g} inside",
        )
