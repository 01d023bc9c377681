"""The PyTorch half of carrying weights: what a model is made of, and how its numbers are read and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from grl.arrays import Array
from grl.torch_impl import GRL
from grl.weights.slot import Slot, narrowed

__all__ = ["NAME", "children", "is_parameter", "own_name", "slots"]

NAME = "PyTorch"


def children(module: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, PyTorch's name for it, value) of a module's own tensors and modules, in the order of definition."""
    if not isinstance(module, nn.Module):
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set and not _counts_batches(name):
            yield name, name, buffer
    for name, child in module._modules.items():
        if child is not None:
            yield name, name, child


def is_parameter(value: Any) -> bool:
    """Whether a child is a tensor, not a module."""
    return isinstance(value, Tensor)


def own_name(value: Any) -> str:
    """The name of a module's class."""
    return type(value).__name__


def slots(value: Any, prefix: str = "") -> dict[str, Slot]:
    """Return the places where a tensor, or a module and all in it, keep their numbers, by name."""
    if isinstance(value, Tensor):
        return {prefix: TensorSlot(value)}
    if isinstance(value, GRL):
        return {_join(prefix, part): ReversalSlot(value, part) for part in ("coeff", "step")}
    found: dict[str, Slot] = {}
    for name, _, child in children(value):
        found |= slots(child, _join(prefix, name))
    return found


class TensorSlot:
    """A parameter or a buffer, written in place: it stays the same tensor, of its dtype, on its device."""

    def __init__(self, tensor: Tensor) -> None:
        self.identity = id(tensor)
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The tensor's; None for one that has none yet."""
        return None if is_lazy(self._tensor) else tuple(self._tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `read` gives."""
        dtype = self._tensor.dtype
        wide = dtype.is_floating_point and dtype not in (torch.float16, torch.float64)
        return np.dtype(np.float32 if wide else str(dtype).removeprefix("torch."))

    def read(self) -> Array:
        """The numbers; bfloat16 as float32, which holds each of its values."""
        tensor = self._tensor.detach()
        if tensor.is_meta:
            raise ValueError("the tensor is on the meta device and holds no numbers")
        tensor = tensor.float() if self.dtype == np.float32 else tensor
        return np.asarray(tensor.cpu().resolve_conj().resolve_neg().numpy())

    def prepare(self, array: Array) -> Tensor:
        """These numbers as `write` takes them."""
        if self._tensor.is_meta or is_lazy(self._tensor):
            raise ValueError("the tensor has no memory yet: it is lazy or on the meta device")
        narrow = getattr(np, str(self._tensor.dtype).removeprefix("torch."), None)
        if narrow is not None:
            array = narrowed(array, np.dtype(narrow))
        tensor = torch.from_numpy(np.array(array)).to(self._tensor.device, self._tensor.dtype)
        if not bool((torch.isfinite(tensor).cpu() | ~torch.from_numpy(np.isfinite(array))).all()):
            raise ValueError(f"a number is beyond the range of {self._tensor.dtype}")
        return tensor

    def keep(self) -> Tensor:
        """What is there now, as `write` takes it."""
        return self._tensor.detach().clone()

    @torch.no_grad()
    def write(self, value: Tensor) -> None:
        """Put prepared numbers there."""
        self._tensor.copy_(value)


class ReversalSlot:
    """λ or the step count of a gradient reversal layer, as its `state_dict` has them; any shape of λ goes."""

    def __init__(self, layer: GRL, part: str) -> None:
        self.identity: Any = (id(layer), part)
        self.shape = None
        self.dtype = np.dtype(np.float64)
        self._layer, self._part = layer, part

    def read(self) -> Array:
        """The number, or the λ of each sample or element."""
        return np.asarray(self.keep().detach().cpu().numpy(), np.float64)

    def prepare(self, array: Array) -> Tensor:
        """These numbers as `write` takes them."""
        return torch.from_numpy(np.array(array, np.int64 if self._part == "step" else np.float64))

    def keep(self) -> Tensor:
        """What is there now, as `write` takes it."""
        value: Tensor = self._layer.state_dict()[self._part]
        return value

    def write(self, value: Tensor) -> None:
        """Put it there; a schedule stays as it is."""
        self._layer.load_state_dict({self._part: value})


def _counts_batches(name: str) -> bool:
    return name == "num_batches_tracked"  # JAX has no counterpart, and only momentum=None reads it


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
