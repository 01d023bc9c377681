"""Causes in the loss: over which axes it is a mean, and how the labels are smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from grl.port.causes.evidence import Evidence, Proof, Variant, with_arguments
from grl.port.runs.recording import LOSS
from grl.port.runs.torch_functions import Args, Call, Function, Kwargs

__all__ = ["label_smoothing", "loss_reduction"]

_LOSSES = [
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "kl_div",
    "soft_margin_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "cosine_embedding_loss",
    "multi_margin_loss",
]


def label_smoothing(evidence: Evidence) -> Proof | None:
    """Solve for the smoothing ε at which the cross entropy is the nnx model's: (1 − ε)·H(y) + ε·H(uniform)."""
    if evidence.key != LOSS:
        return None
    return evidence.try_out(("cross_entropy",), partial(_other_smoothing, evidence))


def _other_smoothing(evidence: Evidence, call: Call, _: Any) -> Iterator[Variant]:
    ends = []
    for smoothing in (0.0, 0.5):
        change = with_arguments("cross_entropy", label_smoothing=smoothing)
        ends.append(float(evidence.torch.activation(LOSS, {call.index: change})[0]))
    if ends[0] == ends[1]:
        return
    solution = 0.5 * (float(evidence.nnx_arrays[0]) - ends[0]) / (ends[1] - ends[0])
    # One equation for one number always has a solution; a smoothing that somebody chose has few digits.
    rounded = float(np.round(solution, 3)) + 0.0  # which makes 0 of −0
    if 0 <= rounded < 1 and abs(solution - rounded) < 1e-6:
        words = f"with label_smoothing={rounded:g} PyTorch's loss is the nnx model's"
        yield words, with_arguments("cross_entropy", label_smoothing=rounded)


def loss_reduction(evidence: Evidence) -> Proof | None:
    """Take the sum for the mean, the mean for the sum, and the sum divided by the size of the batch alone."""
    if evidence.key != LOSS:
        return None
    return evidence.try_out(_LOSSES, _other_reductions) or evidence.try_out(("mean", "sum"), _mean_for_sum)


def _other_reductions(call: Call, _: Any) -> Iterator[Variant]:
    for reduction in ("mean", "sum"):
        change = partial(_with_reduction, reduction=reduction)
        yield f"the {reduction} of PyTorch's {call.name} is the nnx model's loss", change
    yield f"the sum divided by the batch's size of PyTorch's {call.name} is the nnx model's loss", _sum_by_sample


def _with_reduction(function: Function, args: Args, kwargs: Kwargs, reduction: str) -> Any:
    return function(*args, **{**kwargs, "reduction": reduction})


def _sum_by_sample(function: Function, args: Args, kwargs: Kwargs) -> Any:
    batch = args[0] if args else kwargs["input"]
    return _with_reduction(function, args, kwargs, "sum") / len(batch)


def _mean_for_sum(call: Call, _: Any) -> Iterator[Variant]:
    other = "sum" if call.name == "mean" else "mean"
    yield f"the {other} instead of PyTorch's {call.name} is the nnx model's loss", partial(_reduced, name=other)
    yield "the sum divided by the batch's size is the nnx model's loss", _number_by_sample


def _reduced(function: Function, args: Args, kwargs: Kwargs, name: str) -> Any:
    return getattr(args[0], name)(*args[1:], **kwargs)


def _number_by_sample(function: Function, args: Args, kwargs: Kwargs) -> Any:
    return args[0].sum() / len(args[0])
