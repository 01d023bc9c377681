"""Causes in the loss: over what it is a mean, and how the labels are smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from grl.port.causes.cause import Experiment, cause
from grl.port.causes.evidence import Evidence, Variant, with_arguments
from grl.port.runs.recording import LOSS
from grl.port.runs.torch_functions import Call

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {}

_LOSSES = (
    *("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss"),
    *("smooth_l1_loss", "huber_loss", "kl_div", "soft_margin_loss", "poisson_nll_loss", "gaussian_nll_loss"),
    *("hinge_embedding_loss", "margin_ranking_loss", "cosine_embedding_loss", "multi_margin_loss"),
)


@cause(EXPERIMENTS, "label_smoothing")
def label_smoothing(evidence: Evidence) -> str | None:
    """Solve for the smoothing ε at which the cross entropy is the other one: (1 − ε)·H(y) + ε·H(uniform)."""
    if evidence.key != LOSS:
        return None

    def variants(call: Call, _: Any) -> Iterator[Variant]:
        ends = []
        for smoothing in (0.0, 0.5):
            change = with_arguments("cross_entropy", label_smoothing=smoothing)
            ends.append(float(evidence.torch.activation(LOSS, {call.index: change})[0]))
        if ends[0] == ends[1]:
            return
        found = 0.5 * (float(evidence.theirs[0]) - ends[0]) / (ends[1] - ends[0])
        # One equation for one number always has a solution: what was meant is told by its few digits.
        rounded = float(np.round(found, 3))
        if 0 <= rounded < 1 and abs(found - rounded) < 1e-6:
            found = rounded
            yield f"with {found:g} PyTorch's is the other one", with_arguments("cross_entropy", label_smoothing=found)

    return evidence.try_out(("cross_entropy",), variants)


@cause(EXPERIMENTS, "loss_reduction")
def loss_reduction(evidence: Evidence) -> str | None:
    """Take the sum for the mean, the mean for the sum, and the sum divided by the size of the batch alone."""
    if evidence.key != LOSS:
        return None

    def of_a_loss(call: Call, _: Any) -> Iterator[Variant]:
        for reduction in ("mean", "sum", "batchmean"):

            def change(function: Any, args: Any, kwargs: Any, reduction: str = reduction) -> Any:
                if reduction != "batchmean":
                    return function(*args, **{**kwargs, "reduction": reduction})
                return function(*args, **{**kwargs, "reduction": "sum"}) / len(kwargs.get("input", [*args, ()][0]))

            words = {"batchmean": "the sum divided by the batch's size"}.get(reduction, f"the {reduction}")
            yield f"{words} of PyTorch's {call.name} is the other one", change

    def of_numbers(call: Call, _: Any) -> Iterator[Variant]:
        def change(function: Any, args: Any, kwargs: Any) -> Any:
            return getattr(args[0], {"mean": "sum", "sum": "mean"}[call.name])(*args[1:], **kwargs)

        def by_sample(function: Any, args: Any, kwargs: Any) -> Any:
            return args[0].sum() / len(args[0])

        yield f"the {'sum' if call.name == 'mean' else 'mean'} in the place of PyTorch's {call.name} gives it", change
        yield "the sum divided by the batch's size is the other one", by_sample

    return evidence.try_out(_LOSSES, of_a_loss) or evidence.try_out(("mean", "sum"), of_numbers)
