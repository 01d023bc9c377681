"""Why two models part: each cause is one experiment, in one place."""

from __future__ import annotations

from grl.port.causes import layers, losses, weights, windows
from grl.port.causes.cause import Cause, Experiment
from grl.port.causes.evidence import Evidence

__all__ = ["Cause", "Evidence", "explain_activation"]

_EXPERIMENTS: dict[str, Experiment] = (
    losses.EXPERIMENTS | layers.EXPERIMENTS | windows.EXPERIMENTS | weights.EXPERIMENTS
)


def explain_activation(evidence: Evidence) -> list[Cause]:
    """Return the first cause that explains a divergence of activations; what is only told otherwise comes after it."""
    found: list[Cause] = []
    for identifier, experiment in _EXPERIMENTS.items():
        words = experiment(evidence)
        if words:
            found.append(Cause(identifier, words))
            break
    return found
