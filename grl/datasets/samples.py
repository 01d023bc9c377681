"""Samples that are read when they are asked for: in memory, in files, or in both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from grl.datasets.errors import DataError, reading

__all__ = ["Floats", "HasFileno", "Part", "Samples"]

Floats = NDArray[np.float32]


class HasFileno(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Return its descriptor."""


class Part(NamedTuple):
    """Consecutive samples, one after the other in C order.

    Args:
        rows: how many.
        dtype: of their numbers, as they are stored.
        where: an array of them, the path of a file, or an open file.
        offset: the byte in the file at which the first one starts.
    """

    rows: int
    dtype: np.dtype[Any]
    where: NDArray[Any] | str | HasFileno
    offset: int = 0


class Samples:
    """N samples of one shape, indexed like an array of float32 and read when they are.

    Files are read by position and not mapped into memory: pages of a mapping count as the process's own, however many
    it has looked at, and a mapped file that is cut short kills the process without a word.

    Args:
        parts: where they are, in order.
        sample_shape: the shape of one.
        divisor: what every number is divided by; 255 makes an image's bytes a range from 0 to 1.

    Example:
        >>> stored = np.arange(12, dtype=np.uint8).reshape(6, 2)
        >>> samples = Samples([Part(6, stored.dtype, stored)], (2,))
        >>> samples.shape, samples[[4, 0]].tolist()
        ((6, 2), [[8.0, 9.0], [0.0, 1.0]])
    """

    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[Part], sample_shape: tuple[int, ...], divisor: int = 1) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([part.rows for part in parts])
        self._divisor = np.float32(divisor)
        self.shape = (int(self._ends[-1]), *sample_shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions, that of the samples included."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Floats:
        """Read the samples at an integer, a slice, an array of integers (N,) or a mask, as NumPy would.

        Raises:
            IndexError: there is no such sample.
            DataError: a file is not any more what it was.
        """
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        rows = np.asarray(index)
        if rows.dtype == bool:
            return self._read(np.flatnonzero(rows))
        if rows.size and (rows.min() < -len(self) or rows.max() >= len(self)):
            raise IndexError(f"no sample at {index}; there are {len(self)}")
        rows = rows.astype(np.int64) % len(self)
        return self._read(rows) if rows.ndim else self._read(rows[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _read(self, rows: NDArray[np.int64]) -> Floats:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        of = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(of):
            mine = np.flatnonzero(of == i)
            part = self._parts[i]
            own = rows[mine] - (self._ends[i] - part.rows)
            found[mine] = part.where[own] if isinstance(part.where, np.ndarray) else self._load(part, own)
        return found if self._divisor == 1 else np.divide(found, self._divisor, out=found)

    def _load(self, part: Part, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read samples of a file; neighbours in one go."""
        size = part.dtype.itemsize * prod(self.shape[1:])
        data = np.empty(len(rows) * size, np.uint8)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        runs = list(zip(starts, [*starts[1:], len(rows)], strict=True))
        offsets = [part.offset + int(rows[start]) * size for start in starts]
        with _opened(part.where) as (name, descriptor):
            if hasattr(os, "posix_fadvise"):  # a disk is faster when it knows of all of them at once
                for (start, end), offset in zip(runs, offsets, strict=True):
                    os.posix_fadvise(descriptor, offset, (end - start) * size, os.POSIX_FADV_WILLNEED)
            for (start, end), offset in zip(runs, offsets, strict=True):
                _fill(name, descriptor, data[start * size : end * size], offset)
        return data.view(part.dtype).reshape(len(rows), *self.shape[1:])


@contextmanager
def _opened(where: Any) -> Iterator[tuple[str, int]]:
    """Open a path for as long as it is read: there may be more shards than a process may have open files."""
    if not isinstance(where, str):
        yield "the unpacked data", where.fileno()
        return
    with reading(where, "file of samples"), open(where, "rb", buffering=0) as file:
        yield where, file.fileno()


def _fill(name: str, descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(data):  # a call reads 2 GiB at most
        count = os.preadv(descriptor, [data[done:].data], offset + done)
        if count == 0:
            raise DataError(f"{name}: has become shorter since training began.")
        done += count
