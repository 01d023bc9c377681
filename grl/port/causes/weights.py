"""The last of the causes: the weights were never the same."""

from __future__ import annotations

from grl.port.causes.evidence import Evidence, Proof

__all__ = ["weights_not_copied"]


def weights_not_copied(evidence: Evidence) -> Proof | None:
    """Put the nnx model's weights into PyTorch's."""
    if not evidence.weights_explain_it:
        return None
    names = ", ".join(list(evidence.replacements)[:3])
    return Proof(f"with the nnx model's {names} PyTorch's model gives the same; copy_weights copies them")
