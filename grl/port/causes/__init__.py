"""Why two models diverge: each cause is one experiment, in one place."""

from __future__ import annotations

from typing import NamedTuple

from grl.port.causes import layers, losses, weights, windows
from grl.port.causes.cause import Cause
from grl.port.causes.evidence import Evidence, Experiment
from grl.port.runs.torch_functions import Call

__all__ = ["Cause", "Evidence", "Explanation", "explain_activation"]

# The order is that of the experiments: a cause that could imitate another one comes after it. The name of each function
# is the identifier of its cause.
_EXPERIMENTS: tuple[Experiment, ...] = (
    losses.label_smoothing,
    losses.loss_reduction,
    layers.dropout_active,
    layers.train_eval_mode,
    layers.epsilon,
    layers.gelu_approximation,
    layers.align_corners,
    layers.flatten_order,
    layers.transposed_kernel,
    windows.pool_padding_count,
    windows.padding,
    windows.stride,
    weights.weights_not_copied,
)


class Explanation(NamedTuple):
    """A cause, and the call of a function in which it is; None if it is in no function of PyTorch's model."""

    cause: Cause
    call: Call | None


def explain_activation(evidence: Evidence) -> Explanation | None:
    """Return the first cause whose experiment explains a divergence of activations; None if there is none."""
    for experiment in _EXPERIMENTS:
        proof = experiment(evidence)
        if proof is not None:
            return Explanation(Cause(experiment.__name__, proof.words), proof.call)
    return None
