"""One `.npz` file of NumPy arrays, checked as a whole before training begins."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

from grl.datasets.arrays import load_arrays
from grl.datasets.errors import DataError, reading
from grl.datasets.store import Store
from grl.datasets.stored_array import StoredArray
from grl.datasets.task import Task

__all__ = ["Archive", "load_npz"]

_EXPECTED = ".npz archive of NumPy arrays"
# A zip repeats the header of a member before its bytes: 30 bytes, then the name and an extra field of these lengths.
_LOCAL_HEADER = 30
_LENGTHS = (slice(26, 28), slice(28, 30))
_ENCRYPTED = 1


def load_npz(path: str | PathLike[str], store: Store | None = None) -> Task:
    """Return the task in a NumPy archive.

    Keys: `x_source`, `y_source`, `x_target`; for scoring `x_test` and `y_test` (both or neither); for
    `method="target"` also `y_target`. Inputs are real images (N, C, H, W) or vectors (N, D); they become float32
    without scaling. Labels are integers from 0. The source has at least two different ones, and the target and the
    test set have no others. Other keys are ignored.

    Args:
        path: the `.npz` file.
        store: keeps the inputs; by default all of them in memory.

    Returns:
        The task, named by its path, with max(label) + 1 classes.

    Raises:
        DataError: the file is missing, cannot be read or is no NumPy archive, or an array in it is not as described.
    """
    with Archive(fspath(path)) as archive:
        return load_arrays(archive, store or Store(2**63))


class Archive:
    """The arrays of an `.npz` file, each read from front to back, so that its checksum is verified.

    Args:
        name: the path.

    Raises:
        DataError: there is no such file, or it is no such archive.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.layout = "an .npz file"
        with reading(name, _EXPECTED):
            self._file = open(name, "rb")  # noqa: SIM115  # closed by __exit__
            try:
                self._zip = self._open()
                names = {info.filename: info for info in self._zip.infolist()}
            except BaseException:
                self._file.close()
                raise
        self._members = {key.removesuffix(".npy"): info for key, info in names.items()}
        self.keys = frozenset(self._members)

    def _open(self) -> zipfile.ZipFile:
        start = self._file.read(6)
        if start == b"\x93NUMPY":
            raise DataError(f"{self.name}: a single array; expected an .npz archive of named arrays.")
        if not start.startswith(b"PK"):
            raise DataError(f"{self.name}: truncated or no {_EXPECTED} (pickled objects are refused).")
        return zipfile.ZipFile(self._file)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()
        self._file.close()

    def describe(self, key: str) -> str:
        """Return an array's name for a message."""
        return f"{self.name}: {key!r}"

    @contextmanager
    def open(self, key: str) -> Iterator[StoredArray]:
        """Read the header of an array; see `Arrays`."""
        info = self._members[key]
        with reading(self.name, _EXPECTED):
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
                raise DataError(f"{self.describe(key)} is encrypted, or compressed in a way that NumPy does not use.")
            with self._zip.open(info) as stream:
                is_plain = info.compress_type == zipfile.ZIP_STORED
                path, start = (self.name, self._start(info)) if is_plain else (None, 0)
                yield StoredArray.open(self.describe(key), stream, info.file_size, path, start)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return the byte of the file at which a member starts; opening it has checked its header."""
        with open(self.name, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
        return info.header_offset + len(header) + sum(int.from_bytes(header[at], "little") for at in _LENGTHS)
