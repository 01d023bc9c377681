"""A folder of `.npy` files, which are read in place: for data that fit on a disk and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import fstat
from pathlib import Path

from grl.datasets.arrays import load_arrays
from grl.datasets.errors import reading
from grl.datasets.store import Store
from grl.datasets.stored_array import StoredArray
from grl.datasets.task import Task

__all__ = ["load_npy"]


def load_npy(folder: str, store: Store) -> Task:
    """Return the task in `x_source.npy`, `y_source.npy`, `x_target.npy` and, for scoring, `x_test.npy`, `y_test.npy`.

    Args:
        folder: its path.
        store: keeps the inputs.

    Raises:
        DataError: a file is missing or cannot be read, or its array is not as `load_npz` describes.
    """
    return load_arrays(_Folder(folder), store)


class _Folder:
    """The `.npy` files of a folder, as `Arrays`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layout = ".npy files"
        self.keys = frozenset(path.stem for path in Path(name).glob("*.npy"))

    def describe(self, key: str) -> str:
        """Return an array's name for a message."""
        return f"{self._path(key)}: the array"

    @contextmanager
    def open(self, key: str) -> Iterator[StoredArray]:
        """Read the header of an array; see `Arrays`."""
        path = self._path(key)
        with reading(path, ".npy file of one array"), open(path, "rb") as file:
            yield StoredArray.open(self.describe(key), file, fstat(file.fileno()).st_size, path)

    def _path(self, key: str) -> str:
        return str(Path(self.name) / f"{key}.npy")
