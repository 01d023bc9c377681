"""The last of causes: the weights were never the same."""

from __future__ import annotations

from grl.port.causes.cause import Experiment, cause
from grl.port.causes.evidence import Evidence

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {}


@cause(EXPERIMENTS, "weights_not_copied")
def weights_not_copied(evidence: Evidence) -> str | None:
    """Put the nnx model's weights into PyTorch's."""
    if not evidence.with_their_weights():
        return None
    names = ", ".join(list(evidence.replacements)[:3])
    return f"with the nnx model's {names} PyTorch's gives what that gives; copy_weights copies them"
