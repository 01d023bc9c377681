"""The user's own arrays: one `.npz` file, checked before anything is trained on it."""

from __future__ import annotations

import zipfile
import zlib
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grl.datasets.task import DataError, Floats, Labels, Task

__all__ = ["load_npz"]

_INPUTS = ("x_source", "x_target", "x_test")
_LABELS = ("y_source", "y_target", "y_test")
_LARGEST_LABEL = 9999  # one above it is no class but a mistake, and would ask for a classifier of that many outputs


def load_npz(path: str | PathLike[str]) -> Task:
    """Return the task in a NumPy archive.

    Keys: `x_source`, `y_source`, `x_target`; for scoring `x_test` and `y_test` (both or neither); for
    `method="target"` also `y_target`. Inputs are real images (N, C, H, W) or vectors (N, D) and become float32 as they
    are, without scaling; labels are integers from 0. Other keys are ignored.

    Args:
        path: the `.npz` file.

    Returns:
        The task, named by its path, with max(label) + 1 classes.

    Raises:
        DataError: the file is missing, unreadable, no NumPy archive, or an array in it is not as described.
    """
    name = fspath(path)
    if not name:
        raise DataError("data: got no name; accepted is an .npz archive of named arrays.")
    arrays = _read(name)
    for key in ("x_source", "y_source", "x_target"):
        if key not in arrays:
            raise DataError(f"{name}: the key {key!r} is missing; expected are x_source, y_source and x_target.")
    for present, absent in (("x_test", "y_test"), ("y_test", "x_test")):
        if present in arrays and absent not in arrays:
            raise DataError(f"{name}: {present!r} comes without {absent!r}; a score needs both.")
    inputs = {key: _inputs(name, key, arrays[key]) for key in _INPUTS if key in arrays}
    expected = inputs["x_source"].shape[1:]
    for key, x in inputs.items():
        if x.shape[1:] != expected:
            raise DataError(f"{name}: {key!r} has samples of shape {x.shape[1:]}; expected is x_source's, {expected}.")
    sizes = {key: len(inputs["x" + key[1:]]) for key in _LABELS if key in arrays}
    labels = {key: _labels(name, key, arrays[key], size) for key, size in sizes.items()}
    num_classes = int(labels["y_source"].max()) + 1
    if num_classes < 2:
        raise DataError(f"{name}: 'y_source' holds the label 0 alone; expected are at least two classes.")
    for key, y in labels.items():
        if y.max() >= num_classes:
            raise DataError(
                f"{name}: {key!r} holds the label {y.max()}; expected are y_source's, 0 to {num_classes - 1}."
            )
    return Task(
        name=name,
        x_source=inputs["x_source"],
        y_source=labels["y_source"],
        x_target=inputs["x_target"],
        x_test=inputs.get("x_test"),
        y_test=labels.get("y_test"),
        y_target=labels.get("y_target"),
        num_classes=num_classes,
    )


def _read(name: str) -> dict[str, NDArray[Any]]:
    try:
        with open(name, "rb") as file:  # NumPy leaves a file of its own open where it fails
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{name}: a single array; expected is an .npz archive of named arrays.")
            with archive:
                arrays = {key: archive[key] for key in (*_INPUTS, *_LABELS) if key in archive}
                if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                    raise KeyError  # NumPy hands out what is no array as bytes
                return arrays
    except OSError as error:
        if error.strerror is not None:
            raise DataError(f"{name}: cannot be read: {error.strerror}.") from error
        raise DataError(f"{name}: truncated or no .npz archive of NumPy arrays.") from error
    except (EOFError, zipfile.BadZipFile, zlib.error, KeyError, SyntaxError) as error:
        raise DataError(f"{name}: truncated or no .npz archive of NumPy arrays.") from error
    except ValueError as error:  # NumPy's refusal of pickles, in files and in archives
        if isinstance(error, DataError):
            raise
        if "allow_pickle" in str(error):
            raise DataError(f"{name}: no plain arrays of numbers (pickled objects are refused).") from error
        raise DataError(f"{name}: truncated or no .npz archive of NumPy arrays.") from error


def _inputs(name: str, key: str, array: NDArray[Any]) -> Floats:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: {key!r} has dtype {array.dtype}; expected are real numbers.")
    if array.ndim not in (2, 4) or 0 in array.shape:
        raise DataError(
            f"{name}: {key!r} has shape {array.shape}; expected is (N, C, H, W) or (N, D), nothing of it empty."
        )
    with np.errstate(over="ignore"):
        x = array.astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{name}: {key!r} holds NaN or infinite numbers; expected are finite ones (float32).")
    return x


def _labels(name: str, key: str, array: NDArray[Any], size: int) -> Labels:
    if array.dtype.kind not in "iu":
        raise DataError(f"{name}: {key!r} has dtype {array.dtype}; expected are integers.")
    if array.shape != (size,):
        raise DataError(f"{name}: {key!r} has shape {array.shape}; expected is ({size},), one label for each sample.")
    if array.min() < 0 or array.max() > _LARGEST_LABEL:
        wrong = array.min() if array.min() < 0 else array.max()
        raise DataError(f"{name}: {key!r} holds the label {wrong}; expected are labels from 0 to {_LARGEST_LABEL}.")
    return array.astype(np.int64)
