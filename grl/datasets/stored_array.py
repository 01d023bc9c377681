"""An array in NumPy's own format, in a file or in an archive; its header is checked before its numbers are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from grl.datasets.errors import DataError, NoRoomError
from grl.datasets.samples import Part
from grl.datasets.store import PIECE, Store
from grl.datasets.task import Labels

__all__ = ["StoredArray"]

# A larger label is a mistake and not a class; it would ask for a classifier with that many outputs.
_LARGEST_LABEL = 9999
_LARGEST_HEADER = 10_000  # bytes; NumPy's own limit


@dataclass(frozen=True)
class StoredArray:
    """An array whose header has been read.

    Args:
        name: its name for a message.
        shape: the sizes of its dimensions.
        fortran: whether the first index runs fastest.
        dtype: the dtype of its numbers.
        stream: the stream that holds its numbers next.
        in_place: the path and the byte at which a file holds the numbers as they are; None if they are compressed.
    """

    name: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]
    stream: IO[bytes]
    in_place: tuple[str, int] | None

    @classmethod
    def open(cls, name: str, stream: IO[bytes], size: int, path: str | None, start: int = 0) -> StoredArray:
        """Read a header, and check that the stream holds as many numbers as the header says.

        Args:
            name: the array's name for a message.
            stream: the array, from its first byte on.
            size: the number of bytes of the whole array.
            path: the file that holds these bytes as they are; None if they are compressed.
            start: the byte of that file at which they start.

        Raises:
            DataError: it holds pickled objects.
            ValueError: it is no array, or a truncated one; `reading` lists the other errors that this may raise.
        """
        shape, fortran, dtype, offset = _read_header(stream)
        if dtype.hasobject:
            raise DataError(f"{name} holds no plain numbers (pickled objects are refused).")
        if prod(shape) * dtype.itemsize != size - offset:
            raise ValueError("more or fewer bytes than the header says")
        return cls(name, shape, fortran, dtype, stream, None if path is None else (path, start + offset))

    def samples(self, store: Store, sample_shape: tuple[int, ...] | None) -> Part:
        """Read all samples once, and keep them in the store.

        Args:
            store: keeps them.
            sample_shape: the expected shape of a sample; None: an image (C, H, W) or a vector (D,).

        Raises:
            DataError: they are no real numbers, have another shape, or include one that is not finite.
        """
        shape = self.shape
        if self.dtype.kind not in "fiu":
            raise DataError(f"{self.name} has dtype {self.dtype}; expected real numbers.")
        if len(shape) not in (2, 4) or 0 in shape:
            raise DataError(f"{self.name} has shape {shape}; expected (N, C, H, W) or (N, D) without a size of 0.")
        if sample_shape is not None and shape[1:] != sample_shape:
            raise DataError(f"{self.name} has samples of shape {shape[1:]}; expected x_source's, {sample_shape}.")
        transposed = self.fortran and prod(shape) > 1
        with store.write(prod(shape) * self.dtype.itemsize, None if transposed else self.in_place) as writer:
            if transposed and writer.memory is None:
                raise NoRoomError(
                    f"{self.name} is in Fortran order and larger than the memory for data; "
                    "expected C order, as np.ascontiguousarray gives it."
                )
            for piece in self._pieces():
                self._check_finite(piece)
                writer.write(piece)
            if transposed:
                assert writer.memory is not None
                return Part(shape[0], self.dtype, writer.memory.view(self.dtype).reshape(shape[::-1]).T)
            return writer.part(shape, self.dtype)

    def labels(self, size: int) -> Labels:
        """Read the labels (size,).

        Raises:
            DataError: their number is another one, they are no integers, or one is below 0 or far too large.
        """
        if self.dtype.kind not in "iu":
            raise DataError(f"{self.name} has dtype {self.dtype}; expected integers.")
        if self.shape != (size,):
            raise DataError(f"{self.name} has shape {self.shape}; expected ({size},), one label for each sample.")
        labels = []
        for piece in self._pieces():
            numbers = piece.view(self.dtype)
            smallest, largest = int(numbers.min()), int(numbers.max())
            if smallest < 0 or largest > _LARGEST_LABEL:
                wrong = smallest if smallest < 0 else largest
                raise DataError(f"{self.name} holds the label {wrong}; expected labels from 0 to {_LARGEST_LABEL}.")
            labels.append(numbers.astype(np.int64))
        return np.concatenate(labels)

    def _pieces(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all bytes, in pieces of whole numbers. An archive verifies its checksum at the last one."""
        left = prod(self.shape) * self.dtype.itemsize
        largest = PIECE // self.dtype.itemsize * self.dtype.itemsize
        while left:
            data = _read_exactly(self.stream, min(left, largest))
            yield np.frombuffer(data, np.uint8)
            left -= len(data)
        if self.stream.read(1):
            raise ValueError("more bytes than the header says")

    def _check_finite(self, piece: NDArray[np.uint8]) -> None:
        if self.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            x = piece.view(self.dtype).astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{self.name} holds NaN or infinite numbers; expected finite ones (float32).")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Return shape, whether it is in Fortran order, dtype and length of a header.

    NumPy parses it, from no more bytes than a header may have.
    """
    magic = _read_exactly(stream, npy.MAGIC_LEN)
    version = npy.read_magic(BytesIO(magic))
    if version not in ((1, 0), (2, 0)):  # later versions are for field names, which plain numbers do not have
        raise ValueError(f"version {version}")
    length = _read_exactly(stream, 2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes")
    text = BytesIO(length + _read_exactly(stream, size))
    parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about integers as Python 2 wrote them, which a shape may contain
        shape, fortran, dtype = parse(text, _LARGEST_HEADER)
    if any(isinstance(extent, bool) or extent < 0 for extent in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype, npy.MAGIC_LEN + len(length) + size


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
