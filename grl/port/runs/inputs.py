"""What both models are fed with: the same arrays, images laid out for each side, and losses that take both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from grl.port.runs.nnx_model import to_arrays
from grl.port.runs.torch_layers import leaves
from grl.port.runs.torch_model import to_tensors

__all__ = ["Feed", "losses", "to_numpy"]

LAYOUTS = ("NCHW", "NHWC")


def to_numpy(values: Any) -> Any:
    """Return a pytree with NumPy arrays for its tensors and JAX arrays, which share their memory where they can."""

    def convert(value: Any) -> Any:
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
        torch: the arguments for PyTorch's.
        nnx: the arguments for nnx's, channels last.
        nnx_alike: the same, laid out as PyTorch's, for an nnx model that wants them so.
        note: how the images came, in words; "" where there are none.
    """

    torch: tuple[Any, ...]
    nnx: tuple[Any, ...]
    nnx_alike: tuple[Any, ...]
    note: str

    @classmethod
    def of(cls, inputs: Any, torch_model: nn.Module, layout: str | None) -> Feed:
        """Lay the inputs out for both sides.

        Args:
            inputs: an array, or a tuple of all arguments.
            torch_model: its first convolution says how many channels an image has.
            layout: "NCHW" or "NHWC", of images and their like in one or three dimensions; None: guessed.

        Raises:
            ValueError: there is no such layout.
        """
        if layout not in (None, *LAYOUTS):
            raise ValueError(f"layout: got {layout!r}; expected NCHW or NHWC.")
        arguments = tuple(to_numpy(inputs if isinstance(inputs, tuple) else (inputs,)))
        convolution = _first_convolution(torch_model)
        if convolution is None and layout is None:
            return cls(arguments, arguments, arguments, "")
        name, channels, axes = convolution or ("", 0, (3, 4, 5))
        notes: list[str] = []
        ours, theirs = [], []
        for value in arguments:
            if isinstance(value, np.ndarray) and value.ndim in axes and _is_of_images(value.dtype):
                came = layout or _guess(value.shape, channels)
                if not notes:
                    why = f"{name} takes {channels} channels" if layout is None else "as given"
                    notes.append(f"images are taken for {came} ({why}; their shape is {value.shape})")
                ours.append(np.moveaxis(value, -1, 1) if came == "NHWC" else value)
                theirs.append(np.moveaxis(value, 1, -1) if came == "NCHW" else value)
            else:
                ours.append(value)
                theirs.append(value)
        return cls(tuple(ours), tuple(theirs), tuple(ours), "".join(notes))


def _first_convolution(model: nn.Module) -> tuple[str, int, tuple[int, ...]] | None:
    """Its name, the channels that it takes, and how many axes its input has."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return name, module.in_channels, (2 + len(module.kernel_size),)
    return None


def _is_of_images(dtype: Any) -> bool:
    """Floats and bytes; other integers are indices."""
    return bool(dtype.kind == "f" or dtype == np.uint8)


def _guess(shape: tuple[int, ...], channels: int) -> str:
    return "NHWC" if shape[-1] == channels and shape[1] != channels else "NCHW"


def losses(loss: Any, targets: Any) -> tuple[Callable[[Any], Callable[[Any], Any]], Callable[[bool], Any]]:
    """Return both sides' loss of the model's output alone: PyTorch's for a dtype, JAX's for float64 or not.

    Args:
        loss: (PyTorch's, JAX's), each a function of the output, and of the targets where there are some; one function
            for both; None: a sum that depends on every number of the output.
        targets: a pytree of arrays, or None.
    """
    ours, theirs = loss if isinstance(loss, tuple) else (loss, loss)
    targets = to_numpy(targets)

    def torch_loss(dtype: Any) -> Callable[[Any], Any]:
        if ours is None:
            return _torch_probe
        function = copy.deepcopy(ours).to(dtype) if isinstance(ours, nn.Module) else ours
        return _with_targets(function, None if targets is None else to_tensors(targets, dtype))

    def jax_loss(double: bool) -> Callable[[Any], Any]:
        if theirs is None:
            return _jax_probe
        return _with_targets(theirs, None if targets is None else to_arrays(targets, double))

    return torch_loss, jax_loss


def _with_targets(loss: Callable[..., Any], targets: Any) -> Callable[[Any], Any]:
    return loss if targets is None else lambda output: loss(output, targets)


# Without a loss of the user's: sin, so that no normalisation and no symmetry of the output makes its gradient vanish.
def _torch_probe(output: Any) -> Any:
    found = [x for x in leaves(output) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return sum((torch.sin(leaf + 1.0).sum() for leaf in found), torch.tensor(0.0))


def _jax_probe(output: Any) -> Any:
    found = [x for x in jax.tree.leaves(output) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((jnp.sin(leaf + 1.0).sum() for leaf in found), jnp.zeros((), found[0].dtype))
