"""The PyTorch half of `grl.weights`: the parts of a model, and the slots of their numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from grl.arrays import Array, Dtype
from grl.torch_impl import GRL
from grl.weights.half import Child, Part
from grl.weights.slot import Slot, narrowed

__all__ = ["NAME", "ReversalSlot", "TensorSlot", "children", "computes_rms_norm", "is_tensor", "keeps_order", "slots"]

NAME = "PyTorch"

_EPSILONS = ("eps", "epsilon", "variance_epsilon")


def children(module: Part) -> Iterator[Child]:
    """Yield the tensors and modules of a module: parameters, then persistent buffers, then modules.

    `num_batches_tracked` is left out: JAX has no counterpart, and only batch norm with `momentum=None` reads it.
    """
    if not isinstance(module, nn.Module):
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield Child(name, name, parameter)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set and name != "num_batches_tracked":
            yield Child(name, name, buffer)
    for name, child in module._modules.items():
        if child is not None:
            yield Child(name, name, child)


def is_tensor(value: Part) -> bool:
    """Return whether a child is a tensor, not a module."""
    return isinstance(value, Tensor)


def keeps_order(module: Part, few: int = 4) -> bool:
    """Return True: PyTorch keeps the order of definition."""
    return True


def computes_rms_norm(module: Part) -> bool:
    """Return whether a module of an unknown class computes y = x / √(mean(x²) + ε) · weight, as in transformers.

    Only a module with an ε and with one vector `weight`, and with nothing else, is run: a copy of it, on a few numbers.
    """
    if not isinstance(module, nn.Module) or any(module.children()) or any(module.buffers(recurse=False)):
        return False
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.get("weight")
    epsilon = next((vars(module)[name] for name in _EPSILONS if name in vars(module)), None)
    if weight is None or len(parameters) != 1 or is_lazy(weight) or weight.ndim != 1 or not isinstance(epsilon, float):
        return False
    size = len(weight)
    x = torch.linspace(-1.0, 3.0, 3 * size).reshape(3, size)  # its mean is not 0, so a LayerNorm gives something else
    scale = torch.linspace(0.5, 1.5, size)  # not 1, so a norm that adds 1 to its weight gives something else
    try:
        copied = copy.deepcopy(module).to("cpu", torch.float32)
        with torch.no_grad():
            copied.weight = nn.Parameter(scale)
            y = copied(x)
    except Exception:  # it takes another input
        return False
    expected = x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon) * scale
    return isinstance(y, Tensor) and y.shape == x.shape and bool(torch.allclose(y, expected, rtol=1e-5, atol=1e-6))


def slots(value: Part, prefix: str = "") -> dict[str, Slot]:
    """Return the slots of a tensor, or of a module and everything below it, by name."""
    if isinstance(value, Tensor):
        return {prefix: TensorSlot(value)}
    if isinstance(value, GRL):
        return {_join(prefix, key): ReversalSlot(value, key) for key in value.state_variables()}
    collected: dict[str, Slot] = {}
    for child in children(value):
        collected |= slots(child.value, _join(prefix, child.name))
    return collected


class TensorSlot:
    """A parameter or a buffer. It is written in place: it stays the same tensor, of the same dtype and device."""

    def __init__(self, tensor: Tensor) -> None:
        self.identity = id(tensor)
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The tensor's shape; None for a lazy tensor."""
        return None if is_lazy(self._tensor) else tuple(self._tensor.shape)

    @property
    def dtype(self) -> Dtype:
        """The dtype of the array that `read` returns."""
        dtype = self._tensor.dtype
        wide = dtype.is_floating_point and dtype not in (torch.float16, torch.float64)
        return np.dtype(np.float32 if wide else str(dtype).removeprefix("torch."))

    def read(self) -> Array:
        """Return the numbers. bfloat16 becomes float32, which represents each of its values."""
        tensor = self._tensor.detach()
        if tensor.is_meta:
            raise ValueError("the tensor is on the meta device and holds no numbers")
        tensor = tensor.float() if self.dtype == np.float32 else tensor
        return np.asarray(tensor.cpu().resolve_conj().resolve_neg().numpy())

    def prepare(self, array: Array) -> Tensor:
        """Return the numbers as a tensor of the slot's dtype on its device."""
        if self._tensor.is_meta or is_lazy(self._tensor):
            raise ValueError("the tensor has no memory yet: it is lazy or on the meta device")
        numpy_dtype = getattr(np, str(self._tensor.dtype).removeprefix("torch."), None)
        if numpy_dtype is not None:
            array = narrowed(array, np.dtype(numpy_dtype))
        tensor = torch.from_numpy(np.array(array)).to(self._tensor.device, self._tensor.dtype)
        if not bool((torch.isfinite(tensor).cpu() | ~torch.from_numpy(np.isfinite(array))).all()):
            raise ValueError(f"a number is beyond the range of {self._tensor.dtype}")
        return tensor

    def keep(self) -> Tensor:
        """Return a copy of the present value."""
        return self._tensor.detach().clone()

    @torch.no_grad()
    def write(self, value: Tensor) -> None:
        """Store a prepared value."""
        self._tensor.copy_(value)


class ReversalSlot:
    """λ or the step count of a gradient reversal layer, one of its two buffers. λ may have any shape."""

    def __init__(self, layer: GRL, key: str) -> None:
        self.identity = (id(layer), key)
        self.shape = None
        self.dtype: Dtype = np.dtype(np.int64 if key == "step" else np.float64)
        self._layer, self._key = layer, key

    def read(self) -> Array:
        """Return the step count, or λ: one number, or one per sample or element."""
        return np.asarray(self.keep().cpu().numpy(), self.dtype)

    def prepare(self, array: Array) -> Tensor:
        """Return the number as a tensor of the dtype that the `state_dict` has."""
        return torch.from_numpy(np.array(array, self.dtype))

    def keep(self) -> Tensor:
        """Return a copy of the present value."""
        return self._layer.state_variables()[self._key].detach().clone()

    def write(self, value: Tensor) -> None:
        """Store a prepared value. A schedule stays in place."""
        self._layer.load_state_dict({self._key: value})


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
