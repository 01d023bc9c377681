"""Causes in what an optimiser's step adds to a weight: where the weight decay goes in, and where epsilon stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from grl.port.causes.cause import Cause
from grl.port.runs.recording import Array

__all__ = ["Rule", "explain_updates", "rule_of"]

_LITTLE = 1e-3  # of a divergence: as much of it may be left unexplained, since the rule divides by small numbers


@dataclass(frozen=True)
class Rule:
    """The first step of SGD, Adam or AdamW: what it adds to a weight p with the gradient g.

    Adam: −η·m̂ / (√(v̂ + ε′) + ε), where after one step m̂ = g and v̂ = g². The decay λ is added to g (coupled: g + λ·p),
    or −η·λ·p is added to the result (decoupled).

    Args:
        adam: whether the gradient is divided by its size.
        rate: η.
        decay: λ.
        coupled: where the decay goes in.
        epsilon: ε, outside of the root.
        epsilon_root: ε′, inside of it.
    """

    adam: bool
    rate: float
    decay: float
    coupled: bool
    epsilon: float
    epsilon_root: float = 0.0

    def update(self, weight: Array, gradient: Array) -> Array:
        """What is added to the weight."""
        if self.coupled:
            gradient = gradient + self.decay * weight
        direction = gradient
        if self.adam:
            with np.errstate(all="ignore"):
                direction = gradient / (np.sqrt(gradient**2 + self.epsilon_root) + self.epsilon)
        rest = 0.0 if self.coupled else self.decay
        found: Array = -self.rate * (np.nan_to_num(direction) + rest * weight)
        return found


def rule_of(optimizer: Any) -> Rule | None:
    """Return the rule of a PyTorch optimiser's first group; None if it is neither SGD nor Adam nor AdamW."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return Rule(True, float(group["lr"]), group["weight_decay"], not decoupled, group["eps"])
    if isinstance(optimizer, torch.optim.SGD):
        return Rule(False, float(group["lr"]), group["weight_decay"], True, 0.0)
    return None


def explain_updates(
    optimizer: Any, weights: Mapping[str, Array], gradients: Mapping[str, Array], theirs: Mapping[str, Array]
) -> list[Cause]:
    """Compute a first step with the decay elsewhere and with other epsilons, until it is the one of the nnx model.

    Args:
        optimizer: PyTorch's.
        weights: before the step, by PyTorch's names, as all that follows.
        gradients: at the step.
        theirs: what the nnx model's optimiser added.
    """
    rule = rule_of(optimizer)
    names = [name for name in theirs if name in weights and name in gradients]
    if rule is None or not names:
        return []

    def rest(other: Rule) -> float:
        with np.errstate(all="ignore"):
            gaps = [np.abs(other.update(weights[name], gradients[name]) - theirs[name]).max() for name in names]
        return float(max(gaps))

    whole = rest(rule)
    for other in _others(rule, weights, gradients, theirs, names):
        if other != rule and rest(other) <= _LITTLE * whole:
            return list(_differences(rule, other))
    return []


def _others(
    rule: Rule,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    theirs: Mapping[str, Array],
    names: list[str],
) -> Iterator[Rule]:
    decays = dict.fromkeys((rule.decay, 0.0, 1e-2, 1e-4, 5e-4, 1e-3))
    solved = _solved_decay(rule, weights, gradients, theirs, names)
    decayed = [replace(rule, decay=d, coupled=c) for d in (*decays, solved) for c in (True, False)]
    yield from decayed
    if not rule.adam:
        return
    epsilons = dict.fromkeys((rule.epsilon, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-10, 1e-12, 1e-16, 0.0))
    outside, inside = _solved_epsilons(rule, weights, gradients, theirs, names)
    yield replace(rule, epsilon=outside)
    yield replace(rule, epsilon=0.0, epsilon_root=inside)
    for base in (rule, *decayed):
        for eps in epsilons:
            yield replace(base, epsilon=eps)
            yield replace(base, epsilon=0.0, epsilon_root=eps)
            yield replace(base, epsilon_root=eps)
            yield replace(base, epsilon=eps, epsilon_root=eps)


def _solved_decay(
    rule: Rule,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    theirs: Mapping[str, Array],
    names: list[str],
) -> float:
    """The decoupled decay nearest to the updates."""
    bare = replace(rule, decay=0.0)
    rest = np.concatenate([(theirs[n] - bare.update(weights[n], gradients[n])).ravel() for n in names])
    weight = np.concatenate([weights[n].ravel() for n in names])
    square = float(weight @ weight)
    return float(-(rest @ weight) / square / rule.rate) if square and rule.rate else 0.0


def _solved_epsilons(
    rule: Rule,
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    theirs: Mapping[str, Array],
    names: list[str],
) -> tuple[float, float]:
    """The ε and the ε′, each alone, that most elements of the updates ask for: η·|g| / |Δp| = √(g² + ε′) + ε."""
    g = np.concatenate([(gradients[n] + (rule.decay * weights[n] if rule.coupled else 0.0)).ravel() for n in names])
    rest = 0.0 if rule.coupled else rule.rate * rule.decay
    step = np.concatenate([(theirs[n] + rest * weights[n]).ravel() for n in names])
    seen = (g != 0) & (step != 0)
    if not seen.any():
        return rule.epsilon, 0.0
    size, root = np.abs(g[seen]), rule.rate * np.abs(g[seen]) / np.abs(step[seen])
    found = np.median(root - size), np.median(root**2 - size**2)
    outside, inside = (float(f"{max(number, 0.0):.6g}") for number in found)
    return outside, inside


def _differences(rule: Rule, other: Rule) -> Iterator[Cause]:
    if (rule.decay, rule.coupled) != (other.decay, other.coupled) and (rule.decay or other.decay):
        places = {True: "added to the gradient", False: "taken from the weight itself"}
        yield Cause(
            "weight_decay",
            f"in PyTorch {rule.decay:g} is {places[rule.coupled]}, and the nnx model's step is the one with "
            f"{other.decay:.6g} {places[other.coupled]}",
        )
    if (rule.epsilon, rule.epsilon_root) != (other.epsilon, other.epsilon_root):
        yield Cause(
            "optimizer_epsilon",
            f"PyTorch has {rule.epsilon:g} outside of the root, and the nnx model's step is the one with "
            f"{other.epsilon:g} outside and {other.epsilon_root:g} inside",
        )
