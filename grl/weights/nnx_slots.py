"""The JAX half of `grl.weights`: the parts of an nnx model, and the slots of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grl.arrays import Array, Dtype
from grl.jax_impl.module import GRL
from grl.weights.half import Child, Part
from grl.weights.slot import PortError, Prepared, Slot, narrowed

__all__ = ["NAME", "ReversalSlot", "VariableSlot", "children", "computes_rms_norm", "is_tensor", "keeps_order", "slots"]

NAME = "nnx"

if TYPE_CHECKING:
    Variable: TypeAlias = nnx.Variable[Prepared]

_NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate)


def children(module: Part) -> Iterator[Child]:
    """Yield the Variables and modules of a module, in the order of its attributes.

    An `nnx.Sequential` keeps its layers in the attribute `layers`. An `nn.Sequential` has them as its own children, so
    their PyTorch names are the bare indices.

    Raises:
        PortError: a Variable holds something else than one array.
    """
    for name, value in _items(module):
        if isinstance(module, nnx.Sequential) and name == "layers":
            for index, layer in _items(value):
                if _has_parts(layer):
                    yield Child(f"layers.{index}", index, layer)
        elif isinstance(value, nnx.Variable):
            if isinstance(value, _NO_WEIGHTS):
                continue
            content = value.get_value()
            if not hasattr(content, "dtype") and not np.isscalar(content):
                raise PortError(f"{name}: got a Variable that holds a {type(content).__name__}; expected one array.")
            yield Child(name, name, value)
        elif _has_parts(value):
            yield Child(name, name, value)


def is_tensor(value: Part) -> bool:
    """Return whether a child is a Variable, not a module."""
    return isinstance(value, nnx.Variable)


def keeps_order(module: Part, few: int = 4) -> bool | None:
    """Return whether the attributes are in the order of definition. merge, clone and eval_shape sort them by name.

    Args:
        module: an `nnx.Module`. The answer is None for anything else, and for fewer than `few` attributes.
        few: the number of attributes from which alphabetical order is no coincidence.
    """
    if not isinstance(module, nnx.Module) or isinstance(module, nnx.List):
        return None
    names = [name for name, _ in _items(module)]
    return None if len(names) < few else names != sorted(names)


def computes_rms_norm(module: Part) -> bool:
    """Return False: a norm of your own in nnx is paired by its tensors, or by a rule of your own."""
    return False


def slots(value: Part, prefix: str = "") -> dict[str, Slot]:
    """Return the slots of a Variable, or of a module and everything below it, by name.

    λ and the step count of a gradient reversal layer have their names in PyTorch's `state_dict`, coeff and step.
    """
    if isinstance(value, nnx.Variable):
        return {prefix: VariableSlot(value)}
    if isinstance(value, GRL):
        return {_join(prefix, name): ReversalSlot(variable) for name, variable in value.state_variables().items()}
    collected: dict[str, Slot] = {}
    for child in children(value):
        collected |= slots(child.value, _join(prefix, child.name))
    return collected


class VariableSlot:
    """A Variable. It stays the same Variable, of the same dtype, and its array keeps its sharding."""

    def __init__(self, variable: Variable) -> None:
        self.identity = id(variable)
        self._variable = variable

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The array's shape."""
        return tuple(np.shape(self._variable.get_value()))

    @property
    def dtype(self) -> Dtype:
        """The dtype of the array that `read` returns."""
        dtype = _dtype(self._variable.get_value())
        return np.dtype(np.float32) if dtype.kind == "V" else dtype

    def read(self) -> Array:
        """Return the numbers. bfloat16 becomes float32, which represents each of its values."""
        value = self._variable.get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            raise ValueError("the Variable is abstract and holds no numbers")
        array = np.asarray(value)
        return array.astype(self.dtype) if array.dtype != self.dtype else array

    def prepare(self, array: Array) -> Prepared:
        """Return the numbers as a JAX array of the slot's dtype and sharding."""
        value = self._variable.get_value()
        numbers = narrowed(array, _dtype(value))
        with jax.enable_x64(True):  # without it, JAX would round 64-bit numbers to 32 bits
            return jax.device_put(np.array(numbers), getattr(value, "sharding", None))

    def keep(self) -> Prepared:
        """Return the present value."""
        return self._variable.get_value()

    def write(self, value: Prepared) -> None:
        """Store a prepared value."""
        self._variable.set_value(value)


class ReversalSlot(VariableSlot):
    """λ or the step count of a gradient reversal layer, by default a NumPy number. λ may have any shape."""

    @property
    def shape(self) -> None:
        """None: any shape is accepted."""
        return None

    @property
    def dtype(self) -> Dtype:
        """The dtype of the array that `read` returns: that of PyTorch's `state_dict`."""
        return np.dtype(np.int64 if _dtype(self._variable.get_value()).kind == "i" else np.float64)

    def read(self) -> Array:
        """Return the step count, or λ: one number, or one per sample or element."""
        return super().read().astype(self.dtype)

    def prepare(self, array: Array) -> Prepared:
        """Return the number in the form in which the layer keeps it."""
        if self.dtype.kind == "i":
            return np.int32(array)
        return np.float64(array) if array.ndim == 0 else jnp.asarray(array)


def _dtype(value: Prepared) -> Dtype:
    """Return the dtype of an array or of a Python number."""
    return np.dtype(value.dtype) if hasattr(value, "dtype") else np.asarray(value).dtype


def _items(value: Part) -> Iterator[tuple[str, Part]]:
    if isinstance(value, dict):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(index), inner) for index, inner in enumerate(value))
    elif isinstance(value, nnx.Module):
        yield from ((name, inner) for name, inner in vars(value).items() if not name.startswith("_pytree__"))


def _has_parts(value: Part) -> bool:
    if isinstance(value, nnx.Module):
        return True
    return isinstance(value, dict | list | tuple) and any(
        isinstance(inner, nnx.Variable) or _has_parts(inner) for _, inner in _items(value)
    )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
