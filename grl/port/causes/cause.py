"""What a cause is: an identifier with its sentence, and a function that finds out by experiment if it is true."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Cause", "cause"]

_GENERAL = {
    "padding": "The layers pad differently",
    "stride": "The layers step differently (stride or dilation)",
    "flatten_order": "The axes are flattened in another order (NCHW against NHWC)",
    "transposed_kernel": "The kernel is not transposed, or transposed once too often",
    "epsilon": "The normalisation's epsilon differs",
    "batchnorm_momentum": "The momentum of the running statistics differs: PyTorch's m is the weight of the new value, "
    "Flax's of the old one, so that 0.1 there is 0.9 here",
    "batchnorm_variance": "The running variance is the unbiased one on one side (PyTorch's, divided by n − 1) and the "
    "biased one on the other (nnx.BatchNorm's, divided by n)",
    "gelu_approximation": "GELU is computed by erf on one side (PyTorch's default) and by tanh on the other (JAX's)",
    "align_corners": "The interpolation aligns corners on one side and not on the other",
    "pool_padding_count": "The average pooling counts the padding on one side and not on the other",
    "dropout_active": "A dropout is active on one side, or at another rate on the other",
    "train_eval_mode": "Batch norm uses the batch's statistics on one side and the running ones on the other",
    "reversal_missing": "The gradient is reversed on one side and passed on as it is on the other",
    "reversal_doubled": "The gradient is reversed twice on one side",
    "coefficient": "λ of the gradient reversal differs",
    "loss_reduction": "The loss is a mean on one side and a sum on the other, or a mean over other axes",
    "label_smoothing": "The label smoothing differs",
    "weight_decay": "The weight decay differs: added to the gradient, and so scaled by Adam (PyTorch's Adam), or taken "
    "from the weight itself (AdamW, optax.adamw)",
    "optimizer_epsilon": "Adam's epsilon differs, or stands inside the root on one side (optax's eps_root) and outside "
    "on the other",
    "weights_not_copied": "The weights themselves differ",
}


class Cause(str):
    """Why two models part: equal to its identifier, with a sentence of its own.

    Args:
        identifier: one of those that `compare` documents.
        detail: what exactly was found, for the sentence.

    Example:
        >>> cause = Cause("padding", "what PyTorch gives with SAME is what the nnx model gives")
        >>> cause == "padding"
        True
        >>> cause.sentence
        'The layers pad differently: what PyTorch gives with SAME is what the nnx model gives.'
    """

    sentence: str

    def __new__(cls, identifier: str, detail: str = "") -> Cause:
        """Make the string; the sentence is what is known of the cause in general, and the detail."""
        found = super().__new__(cls, identifier)
        found.sentence = f"{_GENERAL[identifier]}{': ' if detail else ''}{detail}."
        return found


Experiment = Callable[..., str | None]
"""Looks at the evidence; returns what explains the divergence to rounding, in words, or None."""


def cause(table: dict[str, Experiment], identifier: str) -> Callable[[Experiment], Experiment]:
    """Return the decorator that puts an experiment into a table. The order of a table is that of the experiments."""

    def register(experiment: Experiment) -> Experiment:
        table[identifier] = experiment
        return experiment

    return register
