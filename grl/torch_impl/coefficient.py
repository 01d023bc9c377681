"""λ in PyTorch: the types it may have, and the form in which it multiplies a gradient."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grl.coefficient import aligned_shape, finite_number, own_array, require_real

__all__ = ["Coefficient", "aligned_coefficient", "as_coefficient", "own_tensor", "scale"]

Coefficient: TypeAlias = "float | np.floating[Any] | np.integer[Any] | NDArray[Any] | Tensor"
"""λ: a real number, a tensor or array of one element, one value per sample (N,), or one per element of x."""

# Up to torch 2.12 a Python number that the backward pass needs costs one compilation for each of its values. As the
# factor of a tensor it costs two in all, as any number does from 2.13 on.
_NUMBERS_RECOMPILE = torch.torch_version.TorchVersion(torch.__version__) < "2.13"


def as_coefficient(coeff: object) -> float | Tensor:
    """Return λ as a Python float or as a real tensor.

    Args:
        coeff: λ as the user wrote it.

    Raises:
        TypeError: λ is a bool, a string, None or complex.
        ValueError: λ is a number that is not finite.
    """
    if (type(coeff) is float or type(coeff) is int) and torch.compiler.is_compiling() and coeff - coeff == 0:
        # A traced number may have no value. A real comparison would compile anew for each λ. This one needs no value,
        # and it still recognises a NaN, because the first λ and any NaN are traced as constants.
        return torch.ones((), dtype=torch.float64) * coeff if _NUMBERS_RECOMPILE else float(coeff)
    if isinstance(coeff, np.ndarray):  # the caller may change it before backward, and PyTorch would not notice
        is_traced = torch.compiler.is_compiling()  # then it is a tensor already
        coeff = torch.as_tensor(coeff).clone() if is_traced else torch.from_numpy(own_array(coeff))
    if isinstance(coeff, Tensor):
        require_real(coeff.dtype, is_real=not (coeff.is_complex() or coeff.dtype == torch.bool))
        return coeff
    if isinstance(coeff, torch.SymFloat | torch.SymInt):  # a number that is being traced: it has no value to check
        return coeff  # type: ignore[return-value]
    return finite_number(coeff)


def aligned_coefficient(x: Tensor, coeff: object) -> float | Tensor:
    """Return λ with the shape and the device in which it multiplies a gradient of x, detached from autograd."""
    coeff = as_coefficient(coeff)
    if not isinstance(coeff, Tensor):
        return coeff
    aligned = coeff.detach().reshape(aligned_shape(coeff.shape, x.shape))
    # PyTorch combines a single number on the CPU with any device, and no larger tensor.
    return aligned if aligned.dim() == 0 and aligned.device.type == "cpu" else aligned.to(x.device)


def own_tensor(coeff: Tensor) -> Tensor:
    """Return a copy that nobody else changes; an expanded dimension is kept as one number."""
    for dim, stride in enumerate(coeff.stride()):
        if stride == 0 and coeff.shape[dim] > 1:
            coeff = coeff.narrow(dim, 0, 1)
    return coeff.clone()


def scale(tensor: Tensor, coeff: float | Tensor) -> Tensor:
    """Return −λ·t with one rounding: in float32 for 16-bit floats, in t's own precision otherwise."""
    if tensor.is_complex():  # λ is real: a complex multiply would turn inf·0 into NaN
        return torch.complex(scale(tensor.real, coeff), scale(tensor.imag, coeff))
    if not isinstance(coeff, Tensor):
        if tensor.dtype.itemsize > 1:
            return tensor * -coeff  # PyTorch itself multiplies a 16-bit tensor by a number in float32
        coeff = torch.tensor(coeff, dtype=torch.float64)  # PyTorch cannot multiply an 8-bit float by a number
    precision = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    return (tensor.to(precision) * -coeff.to(precision)).to(tensor.dtype)
