"""What a cause is: an identifier with its sentence."""

from __future__ import annotations

__all__ = ["Cause"]

_GENERAL = {
    "padding": "The layers pad differently",
    "stride": "The layers step differently (stride or dilation)",
    "flatten_order": "The axes are flattened in another order (NCHW against NHWC)",
    "transposed_kernel": "The kernel is not transposed, or transposed once too often",
    "epsilon": "The normalisation's epsilon differs",
    "batchnorm_momentum": "The momentum of the running statistics differs: PyTorch's m is the weight of the new value, "
    "Flax's of the old one, so that 0.1 in PyTorch is 0.9 in Flax",
    "batchnorm_variance": "The running variance is unbiased on one side (PyTorch divides by n − 1) and biased on the "
    "other (nnx.BatchNorm divides by n)",
    "gelu_approximation": "GELU is computed by erf on one side (PyTorch's default) and by tanh on the other (JAX's)",
    "align_corners": "The interpolation aligns corners on one side and not on the other",
    "pool_padding_count": "The average pooling counts the padding on one side and not on the other",
    "dropout_active": "A dropout is active on only one side, or at another rate on the other",
    "train_eval_mode": "Batch norm uses the batch's statistics on one side and the running ones on the other",
    "reversal_missing": "The gradient is reversed on one side and not on the other",
    "reversal_doubled": "The gradient is reversed twice on one side",
    "coefficient": "λ of the gradient reversal differs",
    "loss_reduction": "The loss is a mean on one side and a sum on the other, or a mean over other axes",
    "label_smoothing": "The label smoothing differs",
    "weight_decay": "The weight decay differs: it is added to the gradient, and so scaled by Adam (PyTorch's Adam), or "
    "subtracted from the weight itself (AdamW, optax.adamw)",
    "optimizer_epsilon": "Adam's epsilon differs, or stands inside the root on one side (optax's eps_root) and outside "
    "on the other",
    "weights_not_copied": "The weights themselves differ",
}


class Cause(str):
    """Why two models diverge: equal to its identifier, with a sentence of its own.

    Args:
        identifier: one of those that `compare` documents.
        detail: the result of the experiment, for the sentence.

    Example:
        >>> cause = Cause("padding", "what PyTorch gives with SAME is what the nnx model gives")
        >>> cause == "padding"
        True
        >>> cause.sentence
        'The layers pad differently: what PyTorch gives with SAME is what the nnx model gives.'
    """

    sentence: str

    def __new__(cls, identifier: str, detail: str = "") -> Cause:
        """Make the string; its sentence is the general description of the cause, and the detail."""
        cause = super().__new__(cls, identifier)
        cause.sentence = f"{_GENERAL[identifier]}{': ' if detail else ''}{detail}."
        return cause
