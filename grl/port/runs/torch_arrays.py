"""PyTorch's tensors as NumPy arrays, and NumPy arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from grl.arrays import Array

__all__ = ["floats", "leaves", "to_numpy", "to_tensors"]


def to_tensors(values: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Return a pytree with tensors for its NumPy arrays, without a copy where dtype and device allow it.

    Args:
        values: the pytree.
        dtype: of its floating-point arrays.
        device: of the tensors.
    """

    def convert(value: object) -> object:
        if not isinstance(value, np.ndarray):
            return value
        shares = value.flags.writeable and min(value.strides, default=0) >= 0
        tensor = torch.from_numpy(value if shares else value.copy())
        if tensor.dtype == torch.int32:
            tensor = tensor.long()  # PyTorch takes only these as an index
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return tree_map(convert, values)


def to_numpy(tensor: Tensor, copied: bool = False) -> Array:
    """Return a tensor as a NumPy array; copied where something later may change the tensor in place."""
    array = tensor.detach().cpu()
    if array.layout != torch.strided:
        array = array.to_dense()  # the gradient of a sparse embedding
    if array.dtype in (torch.bfloat16, torch.float16):
        return array.float().numpy()
    result: Array = array.numpy()
    return result.copy() if copied else result


def floats(output: object) -> list[Array]:
    """Return the floating-point arrays of a pytree, by calls that do not count as the model's."""
    with torch._C.DisableTorchFunction():
        tensors = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return [to_numpy(tensor, copied=True) for tensor in tensors]


def leaves(output: object) -> list[Any]:
    """Return the leaves of a pytree in JAX's order, in which a dict goes by its keys."""
    if type(output) is dict:
        try:
            return [leaf for key in sorted(output) for leaf in leaves(output[key])]
        except TypeError:  # keys without an order, which JAX does not take
            return tree_leaves(output)
    if isinstance(output, list | tuple):
        return [leaf for part in output for leaf in leaves(part)]
    return tree_leaves(output)
