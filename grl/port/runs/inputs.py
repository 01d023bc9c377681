"""The inputs of both models: the same arrays, images laid out for each side, and a loss for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from grl.arrays import Array
from grl.port.runs.nnx_arrays import to_arrays
from grl.port.runs.torch_arrays import leaves, to_tensors

if TYPE_CHECKING:
    from grl.port.setup import Losses

__all__ = ["Feed", "losses", "to_numpy"]

LAYOUTS = ("NCHW", "NHWC")

LossOfOutput: TypeAlias = Callable[[Any], Any]
"""A function of the model's output to a scalar of its framework."""


def to_numpy(values: Any) -> Any:
    """Return a pytree with NumPy arrays for its tensors and JAX arrays, which share memory where they can."""

    def convert(value: object) -> object:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, jax.Array):
            return np.asarray(value, np.float32 if value.dtype == jnp.bfloat16 else None)
        return value

    return jax.tree.map(convert, values)


@dataclass(frozen=True)
class Feed:
    """The inputs of both models.

    Args:
        torch: the arguments of PyTorch's model.
        nnx: the arguments of the nnx model, with channels last.
        note: in which layout images came, in words; "" if there are none.
    """

    torch: tuple[object, ...]
    nnx: tuple[object, ...]
    note: str

    @classmethod
    def of(cls, inputs: object, torch_model: nn.Module, layout: str | None) -> Feed:
        """Lay the inputs out for both sides.

        Args:
            inputs: an array, or a tuple of all arguments.
            torch_model: its first convolution shows how many channels an image has.
            layout: "NCHW" or "NHWC", of images and of data with one or three spatial axes; None: guessed.

        Raises:
            ValueError: there is no such layout.
        """
        if layout not in (None, *LAYOUTS):
            raise ValueError(f"layout: got {layout!r}; expected NCHW or NHWC.")
        arguments = tuple(to_numpy(inputs if isinstance(inputs, tuple) else (inputs,)))
        convolution = _first_convolution(torch_model)
        if convolution is None and layout is None:
            return cls(arguments, arguments, "")
        convolution = convolution or _Convolution("", 0, (3, 4, 5))
        note = ""
        torch_arguments, nnx_arguments = [], []
        for value in arguments:
            torch_value = nnx_value = value
            if isinstance(value, np.ndarray) and value.ndim in convolution.axes and _is_of_images(value):
                given = layout or _guess(value.shape, convolution.channels)
                reason = "as given" if layout else f"{convolution.name} takes {convolution.channels} channels"
                note = note or f"images are taken for {given} ({reason}; their shape is {value.shape})"
                torch_value = np.moveaxis(value, -1, 1) if given == "NHWC" else value
                nnx_value = np.moveaxis(value, 1, -1) if given == "NCHW" else value
            torch_arguments.append(torch_value)
            nnx_arguments.append(nnx_value)
        return cls(tuple(torch_arguments), tuple(nnx_arguments), note)


class _Convolution(NamedTuple):
    """The first convolution of a model.

    Args:
        name: of the layer.
        channels: how many it takes.
        axes: how many axes its input may have.
    """

    name: str
    channels: int
    axes: tuple[int, ...]


def _first_convolution(model: nn.Module) -> _Convolution | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return _Convolution(name, module.in_channels, (2 + len(module.kernel_size),))
    return None


def _is_of_images(array: Array) -> bool:
    """Floats and bytes; other integers are indices."""
    return bool(array.dtype.kind == "f" or array.dtype == np.uint8)


def _guess(shape: tuple[int, ...], channels: int) -> str:
    return "NHWC" if shape[-1] == channels and shape[1] != channels else "NCHW"


def losses(
    loss: Losses, targets: object
) -> tuple[Callable[[torch.dtype], LossOfOutput], Callable[[bool], LossOfOutput]]:
    """Return both sides' loss of the model's output alone: PyTorch's for a dtype, JAX's for float64 or not.

    Args:
        loss: (PyTorch's, JAX's), each a function of the output, and of the targets if there are some; one function
            for both; None: a sum that depends on every number of the output.
        targets: a pytree of arrays, or None.
    """
    of_torch, of_jax = loss if isinstance(loss, tuple) else (loss, loss)
    targets = to_numpy(targets)

    def torch_loss(dtype: torch.dtype) -> LossOfOutput:
        if of_torch is None:
            return _torch_probe
        function = copy.deepcopy(of_torch).to(dtype) if isinstance(of_torch, nn.Module) else of_torch
        return _with_targets(function, None if targets is None else to_tensors(targets, dtype))

    def jax_loss(double: bool) -> LossOfOutput:
        if of_jax is None:
            return _jax_probe
        return _with_targets(of_jax, None if targets is None else to_arrays(targets, double))

    return torch_loss, jax_loss


def _with_targets(loss: Callable[..., Any], targets: object) -> LossOfOutput:
    return loss if targets is None else lambda output: loss(output, targets)


# The loss if the user gives none: a sine, so that no normalisation and no symmetry of the output cancels its gradient.
def _torch_probe(output: object) -> torch.Tensor:
    tensors = [leaf for leaf in leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return sum((torch.sin(tensor + 1.0).sum() for tensor in tensors), torch.tensor(0.0))


def _jax_probe(output: object) -> jax.Array:
    arrays = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((jnp.sin(array + 1.0).sum() for array in arrays), jnp.zeros((), arrays[0].dtype))
