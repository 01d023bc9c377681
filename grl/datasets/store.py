"""The place where samples are kept: memory up to a bound, and files beyond it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import NoRoomError
from grl.datasets.samples import HasFileno, Part

__all__ = ["PIECE", "Store", "Writer"]

PIECE = 1 << 20
"""The number of bytes that are read at once while data are checked."""


class Store:
    """Room for samples: a bounded number of bytes of memory, and one file in the folder for temporary files.

    The file has no name, so it disappears with the process, however that ends. It takes compressed data and images, so
    that a sample can be found by its position. Data that are not compressed stay where they are.

    Args:
        memory: the number of bytes of memory.
        follow: called with the number of bytes read so far.

    Raises:
        NoRoomError: (while writing) the file would fill the disk.

    Example:
        >>> store = Store(memory=100)
        >>> with store.write(12, None) as writer:
        ...     writer.write(np.arange(12, dtype=np.uint8))
        ...     part = writer.part((6, 2), np.dtype(np.uint8))
        >>> part.rows, store.memory
        (6, 88)
    """

    def __init__(self, memory: int, follow: Callable[[int], None] | None = None) -> None:
        self.memory = memory
        self._follow = follow
        self._read = 0
        self._file: _NamelessFile | None = None
        self._end = 0

    @contextmanager
    def write(self, nbytes: int, in_place: tuple[str, int] | None) -> Iterator[Writer]:
        """Give room for so many bytes; if the block fails, take it back.

        Args:
            nbytes: the largest number of bytes that will be written.
            in_place: the path and the byte at which a file already holds these bytes as they are, so that a second copy
                is not needed; None if there is no such file.

        Raises:
            NoRoomError: the bytes do not fit on the disk.
        """
        with self.all_or_nothing():
            if nbytes <= self.memory:
                self.memory -= nbytes
                yield Writer(self._count, memory=np.empty(nbytes, np.uint8))
            elif in_place is not None:
                yield Writer(self._count, *in_place)
            else:
                writer = Writer(self._count, self._reserve(nbytes), self._end)
                yield writer
                self._end += writer.written

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """If the block fails, take back the room that was given in it."""
        before = self.memory, self._end
        try:
            yield
        except BaseException:
            self.memory, self._end = before
            raise

    def _count(self, nbytes: int) -> None:
        self._read += nbytes
        if self._follow is not None:
            self._follow(self._read)

    def _reserve(self, nbytes: int) -> HasFileno:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if nbytes > free:
            raise NoRoomError(
                f"{folder}: unpacking the data takes {_mebibytes(nbytes)} of disk and {_mebibytes(free)} are free; "
                "TMPDIR names another folder, and files that are not compressed need none."
            )
        if self._file is None:
            self._file = _NamelessFile()
        return self._file


class _NamelessFile:
    """A temporary file that lives as long as a reader refers to it, and no longer than the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def fileno(self) -> int:
        return self._file.fileno()

    def __del__(self) -> None:
        self._file.close()


class Writer:
    """Writes bytes to memory or to a file; or only counts them, if a file holds them already.

    Args:
        count: called with the length of each piece.
        where: an open file to write to, or the path of the file that holds the bytes already.
        offset: the byte in it at which they start.
        memory: instead of these, an array to write to.
    """

    def __init__(
        self,
        count: Callable[[int], None],
        where: HasFileno | str = "",
        offset: int = 0,
        *,
        memory: NDArray[np.uint8] | None = None,
    ) -> None:
        self._count = count
        self.memory = memory
        self.written = 0
        self._where = where
        self._offset = offset

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write the next bytes.

        Raises:
            NoRoomError: the file cannot be written.
        """
        if self.memory is not None:
            self.memory[self.written : self.written + len(data)] = data
        elif not isinstance(self._where, str):
            self._write_to_file(self._where, data)
        self.written += len(data)
        self._count(len(data))

    def _write_to_file(self, file: HasFileno, data: NDArray[np.uint8]) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(file.fileno(), data[done:].data, self._offset + self.written + done)
        except OSError as error:
            raise NoRoomError(f"{tempfile.gettempdir()}: the data cannot be unpacked: {error.strerror}.") from error

    def part(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Part:
        """Return the bytes written so far as samples.

        Args:
            shape: (N, ...) of all samples.
            dtype: the dtype of their numbers.
        """
        if self.memory is None:
            return Part(shape[0], dtype, self._where, self._offset)
        return Part(shape[0], dtype, self.memory[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape))


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
