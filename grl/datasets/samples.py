"""Samples that are read on demand, from memory, from files, or from both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from grl.datasets.errors import DataError, reading

__all__ = ["Floats", "HasFileno", "Part", "Samples"]

Floats = NDArray[np.float32]


class HasFileno(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Return its descriptor."""


class Part(NamedTuple):
    """Consecutive samples, stored one after the other in C order.

    Args:
        rows: the number of samples.
        dtype: the dtype of the stored numbers.
        where: an array of the samples, the path of a file, or an open file.
        offset: the byte in the file at which the first sample starts.
    """

    rows: int
    dtype: np.dtype[np.generic]
    where: NDArray[np.generic] | str | HasFileno
    offset: int = 0


class Samples:
    """N samples of one shape, indexed like a float32 array; each is read when it is indexed.

    Files are read by position and not mapped into memory. The pages of a mapping count as memory of the process,
    however many it has touched, and a mapped file that is cut short kills the process without a message.

    Args:
        parts: the places of the samples, in order.
        sample_shape: the shape of one sample.
        divisor: every number is divided by it; 255 scales the bytes of an image to 0 … 1.

    Example:
        >>> stored = np.arange(12, dtype=np.uint8).reshape(6, 2)
        >>> samples = Samples([Part(6, stored.dtype, stored)], (2,))
        >>> samples.shape, samples[[4, 0]].tolist()
        ((6, 2), [[8.0, 9.0], [0.0, 1.0]])
    """

    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[Part], sample_shape: tuple[int, ...], divisor: int = 1) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([part.rows for part in parts])
        self._divisor = np.float32(divisor)
        self.shape = (int(self._ends[-1]), *sample_shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions, including the one that counts the samples."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: ArrayLike | slice) -> Floats:
        """Read the samples at an integer, a slice, an array of integers (N,) or a mask (N,), as NumPy would.

        Raises:
            IndexError: there is no such sample.
            DataError: a file has changed since it was opened.
        """
        if isinstance(index, slice):
            return self.read(np.arange(*index.indices(len(self))))
        rows = np.asarray(index)
        if rows.dtype == bool:
            return self.read(np.flatnonzero(rows))
        if rows.size and (rows.min() < -len(self) or rows.max() >= len(self)):
            raise IndexError(f"no sample at {index}; there are {len(self)}")
        rows = rows.astype(np.int64) % len(self)
        return self.read(rows) if rows.ndim else self.read(rows[None])[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def read(self, rows: NDArray[np.int64]) -> Floats:
        """Return the samples (n, ...) of these rows (n,), each from 0 to N − 1."""
        samples = np.empty((len(rows), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(part_of):
            part, positions = self.parts[i], np.flatnonzero(part_of == i)
            inside = rows[positions] - (self._ends[i] - part.rows)
            if isinstance(part.where, np.ndarray):
                samples[positions] = part.where[inside]
            else:
                samples[positions] = self._load(part, part.where, inside)
        return samples if self._divisor == 1 else np.divide(samples, self._divisor, out=samples)

    def _load(self, part: Part, where: str | HasFileno, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Read samples of a file; consecutive rows with one call."""
        size = part.dtype.itemsize * prod(self.shape[1:])
        data = np.empty(len(rows) * size, np.uint8)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        runs = list(zip(starts, [*starts[1:], len(rows)], strict=True))
        offsets = [part.offset + int(rows[start]) * size for start in starts]
        with _opened(where) as (name, descriptor):
            if hasattr(os, "posix_fadvise"):  # a disk is faster when it knows all reads in advance
                for (start, end), offset in zip(runs, offsets, strict=True):
                    os.posix_fadvise(descriptor, offset, (end - start) * size, os.POSIX_FADV_WILLNEED)
            for (start, end), offset in zip(runs, offsets, strict=True):
                _fill(name, descriptor, data[start * size : end * size], offset)
        return data.view(part.dtype).reshape(len(rows), *self.shape[1:])


@contextmanager
def _opened(where: str | HasFileno) -> Iterator[tuple[str, int]]:
    """Open a path for the time of one read: there may be more shards than a process may have open files."""
    if not isinstance(where, str):
        yield "the unpacked data", where.fileno()
        return
    with reading(where, "file of samples"), open(where, "rb", buffering=0) as file:
        yield where, file.fileno()


def _fill(name: str, descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(data):  # one call reads at most 2 GiB
        count = os.preadv(descriptor, [data[done:].data], offset + done)
        if count == 0:
            raise DataError(f"{name}: has become shorter since training began.")
        done += count
