"""A model's weights in a file: safetensors, in PyTorch's names and layouts for both backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from grl.arrays import Weights
from grl.errors import GrlError
from grl.files import replacing

__all__ = ["CheckpointError", "check_weights", "load_metadata", "load_weights", "save_weights"]


class CheckpointError(GrlError, ValueError):
    """The files hold no weights, or no state of a run, that fit. The message is one sentence."""


def save_weights(path: str | PathLike[str], weights: Weights, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        path: the file.
        weights: name → array, in PyTorch's names and layouts.
        metadata: what else the file says.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    data = save(arrays, {"format": "pt", **(metadata or {})})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_weights(path: str | PathLike[str]) -> Weights:
    """Read the weights that a run of either backend has saved.

    Args:
        path: a `model.safetensors`.

    Returns:
        name → array, in PyTorch's names and layouts.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated or no safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not os.fspath(path):  # which pathlib takes for the current directory
        raise CheckpointError("weights: got no name; expected a model.safetensors that a run has written.")
    try:
        return load(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)}: cannot be read: {error.strerror}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{os.fspath(path)}: truncated or no safetensors file of NumPy dtypes.") from error


def load_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Read what else a file of weights says, one that `load_weights` reads."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})


def check_weights(name: str, weights: Weights, expected: Weights) -> None:
    """Make sure that weights are those of a network.

    Args:
        name: where they come from, for the message.
        weights: name → array.
        expected: weights of the right network, whatever their values.

    Raises:
        CheckpointError: a name is missing or too many, a shape differs, or a number is not finite.
    """
    for key in expected.keys() - weights.keys():
        raise CheckpointError(f"{name}: weights of another network: {key!r} is missing.")
    for key in weights.keys() - expected.keys():
        raise CheckpointError(f"{name}: weights of another network: {key!r} has no place in this one.")
    for key, array in weights.items():
        if array.shape != expected[key].shape:
            shapes = f"has shape {array.shape}; expected {expected[key].shape}"
            raise CheckpointError(f"{name}: weights of another network: {key!r} {shapes}.")
        if array.dtype.kind != expected[key].dtype.kind or not np.isfinite(array).all():
            kind = {"f": "floating-point numbers", "c": "complex numbers"}.get(expected[key].dtype.kind, "integers")
            raise CheckpointError(f"{name}: {key!r} holds something else than finite {kind}.")
