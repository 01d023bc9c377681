"""A model's weights in a safetensors file, with PyTorch's names and layouts for both backends."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from grl.arrays import Weights
from grl.errors import GrlError
from grl.files import replacing

__all__ = ["WeightsFileError", "check_weights", "load_metadata", "load_weights", "save_weights"]


class WeightsFileError(GrlError, ValueError):
    """A file of weights cannot be read, or its weights do not fit the network. The message is one sentence."""


def save_weights(path: str | PathLike[str], weights: Weights, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights to a safetensors file, completely or not at all.

    Args:
        path: the file.
        weights: name → array, in PyTorch's names and layouts.
        metadata: text that the file holds besides the weights.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    content = save(arrays, {"format": "pt", **(metadata or {})})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: str | PathLike[str]) -> Weights:
    """Read the weights that a run of either backend has saved.

    Args:
        path: a `model.safetensors`.

    Returns:
        name → array, in PyTorch's names and layouts.

    Raises:
        WeightsFileError: the file is missing, unreadable, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not fspath(path):  # pathlib takes an empty name for the current directory
        raise WeightsFileError("weights: got no name; expected a model.safetensors that a run has written.")
    try:
        return load(Path(path).read_bytes())
    except OSError as error:
        raise WeightsFileError(f"{fspath(path)}: cannot be read: {error.strerror}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"{fspath(path)}: truncated or no safetensors file of NumPy dtypes."
        raise WeightsFileError(message) from error


def load_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Read the metadata of a file of weights.

    Args:
        path: a file that `load_weights` can read.
    """
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})


def check_weights(name: str, weights: Weights, expected: Weights) -> None:
    """Check that weights belong to a network.

    Args:
        name: the source of the weights, for the message.
        weights: name → array.
        expected: weights of the right network; their values do not matter.

    Raises:
        WeightsFileError: a name is missing or unknown, a shape differs, or a number is not finite.
    """
    for key in expected.keys() - weights.keys():
        raise WeightsFileError(f"{name}: weights of another network: {key!r} is missing.")
    for key in weights.keys() - expected.keys():
        raise WeightsFileError(f"{name}: weights of another network: {key!r} has no place in this one.")
    for key, array in weights.items():
        if array.shape != expected[key].shape:
            shapes = f"has shape {array.shape}; expected {expected[key].shape}"
            raise WeightsFileError(f"{name}: weights of another network: {key!r} {shapes}.")
        if array.dtype.kind != expected[key].dtype.kind or not np.isfinite(array).all():
            kind = {"f": "floating-point numbers", "c": "complex numbers"}.get(expected[key].dtype.kind, "integers")
            raise WeightsFileError(f"{name}: {key!r} has other values; expected finite {kind}.")
