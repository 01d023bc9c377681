"""The JAX half of carrying weights: what an nnx model is made of, and how its numbers are read and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grl.arrays import Array
from grl.jax_impl.module import GRL
from grl.weights.slot import PortError, Slot, narrowed

__all__ = ["NAME", "children", "is_parameter", "keeps_order", "own_name", "slots"]

NAME = "nnx"

_NO_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate)


def children(module: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, PyTorch's name for it, value) of a module's own Variables and modules, in the order of definition.

    An `nnx.Sequential` keeps its layers in `layers`, PyTorch's at once in itself.
    """
    for name, value in _items(module):
        if isinstance(module, nnx.Sequential) and name == "layers":
            for index, layer in _items(value):
                if _has_parts(layer):
                    yield f"layers.{index}", index, layer
        elif isinstance(value, nnx.Variable):
            if isinstance(value, _NO_WEIGHTS):
                continue
            held = value.get_value()
            if not hasattr(held, "dtype") and not np.isscalar(held):
                raise PortError(f"{name}: got a Variable that holds a {type(held).__name__}; expected one array.")
            yield name, name, value
        elif _has_parts(value):
            yield name, name, value


def keeps_order(module: Any, few: int = 4) -> bool | None:
    """Whether a module's attributes are as they were defined: merge, clone and eval_shape sort them by name.

    Args:
        module: an `nnx.Module`; of anything else, and of one with fewer attributes than `few`, nothing is known.
        few: so many may be in alphabetical order by chance.
    """
    if not isinstance(module, nnx.Module) or isinstance(module, nnx.List):
        return None
    names = [name for name, _ in _items(module)]
    return None if len(names) < few else names != sorted(names)


def is_parameter(value: Any) -> bool:
    """Whether a child is a Variable, not a module."""
    return isinstance(value, nnx.Variable)


def own_name(value: Any) -> str:
    """The name of a module's class."""
    return type(value).__name__


def slots(value: Any, prefix: str = "") -> dict[str, Slot]:
    """Return the places where a Variable, or a module and all in it, keep their numbers, by name."""
    if isinstance(value, nnx.Variable):
        return {prefix: VariableSlot(value)}
    if isinstance(value, GRL):
        return {_join(prefix, part): ReversalSlot(getattr(value, part)) for part in ("_coeff", "_step")}
    found: dict[str, Slot] = {}
    for name, _, child in children(value):
        found |= slots(child, _join(prefix, name))
    return found


class VariableSlot:
    """A Variable: it stays the same one, of its dtype, and its array lies where the old one lay."""

    def __init__(self, variable: Any) -> None:
        self.identity: Any = id(variable)
        self._variable = variable

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The array's."""
        return tuple(np.shape(self._variable.get_value()))

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `read` gives."""
        dtype = _dtype(self._variable.get_value())
        return np.dtype(np.float32) if dtype.kind == "V" else dtype

    def read(self) -> Array:
        """The numbers; bfloat16 as float32, which holds each of its values."""
        value = self._variable.get_value()
        if isinstance(value, jax.ShapeDtypeStruct):
            raise ValueError("the Variable is abstract and holds no numbers")
        array = np.asarray(value)
        return array.astype(self.dtype) if array.dtype != self.dtype else array

    def prepare(self, array: Array) -> Any:
        """These numbers as `write` takes them."""
        value = self._variable.get_value()
        numbers = narrowed(array, _dtype(value))
        with jax.enable_x64(True):  # without it, 64-bit numbers would become 32-bit ones
            return jax.device_put(np.array(numbers), getattr(value, "sharding", None))

    def keep(self) -> Any:
        """What is there now, as `write` takes it."""
        return self._variable.get_value()

    def write(self, value: Any) -> None:
        """Put prepared numbers there."""
        self._variable.set_value(value)


class ReversalSlot(VariableSlot):
    """λ or the step count of a gradient reversal layer: a NumPy number by default; any shape of λ goes."""

    @property
    def shape(self) -> None:
        """Any."""
        return None

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `read` gives."""
        return np.dtype(np.float64)

    def read(self) -> Array:
        """The number, or the λ of each sample or element."""
        return np.asarray(self._variable.get_value(), np.float64)

    def prepare(self, array: Array) -> Any:
        """These numbers as `write` takes them."""
        if np.asarray(self._variable.get_value()).dtype.kind == "i":
            return np.int32(array)
        return np.float64(array) if array.ndim == 0 else jnp.asarray(array)


def _dtype(value: Any) -> np.dtype[Any]:
    """The dtype of an array, or of a number of Python's."""
    return np.dtype(value.dtype) if hasattr(value, "dtype") else np.asarray(value).dtype


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(index), inner) for index, inner in enumerate(value))
    elif isinstance(value, nnx.Module):
        yield from ((name, inner) for name, inner in vars(value).items() if not name.startswith("_pytree__"))


def _has_parts(value: Any) -> bool:
    if isinstance(value, nnx.Module):
        return True
    return isinstance(value, dict | list | tuple) and any(
        isinstance(inner, nnx.Variable) or _has_parts(inner) for _, inner in _items(value)
    )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
