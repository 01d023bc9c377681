"""An array in NumPy's own format, in a file or in an archive: judged by its header before a number of it is read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from grl.datasets.errors import DataError, NoRoomError
from grl.datasets.samples import Part
from grl.datasets.store import PIECE, Store
from grl.datasets.task import Labels

__all__ = ["Stored"]

_LARGEST_LABEL = 9999  # one above it is no class but a mistake, and would ask for a classifier of that many outputs
_LARGEST_HEADER = 10_000  # bytes; NumPy's own limit


@dataclass(frozen=True)
class Stored:
    """An array whose header has been read.

    Args:
        where: what a message calls it.
        shape: the sizes of its dimensions.
        fortran: whether the first index runs fastest.
        dtype: of its numbers.
        stream: where its numbers come next.
        in_place: the path and the byte at which they can be found again as they are; None: they are compressed.
    """

    where: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    stream: IO[bytes]
    in_place: tuple[str, int] | None

    @classmethod
    def open(cls, where: str, stream: IO[bytes], size: int, path: str | None, start: int = 0) -> Stored:
        """Read a header, and make sure that there are as many numbers as it says.

        Args:
            where: what a message calls the array.
            stream: the array, from its first byte on.
            size: the bytes of the array in all.
            path: the file in which these bytes stand as they are; None: they are compressed.
            start: the byte of that file at which they start.

        Raises:
            DataError: it holds pickled objects.
            ValueError and others (see `reading`): it is no array, or a truncated one.
        """
        shape, fortran, dtype, offset = _read_header(stream)
        if dtype.hasobject:
            raise DataError(f"{where} holds no plain numbers (pickled objects are refused).")
        if prod(shape) * dtype.itemsize != size - offset:
            raise ValueError("more or fewer bytes than the header says")
        return cls(where, shape, fortran, dtype, stream, None if path is None else (path, start + offset))

    def samples(self, store: Store, sample_shape: tuple[int, ...] | None) -> Part:
        """Read all samples once, and keep them where there is room.

        Args:
            store: what keeps them.
            sample_shape: what one has to be; None: an image (C, H, W) or a vector (D,).

        Raises:
            DataError: no real numbers, another shape, or a number that is not finite.
        """
        if self.dtype.kind not in "fiu":
            raise DataError(f"{self.where} has dtype {self.dtype}; expected real numbers.")
        shape = self.shape
        if len(shape) not in (2, 4) or 0 in shape:
            raise DataError(f"{self.where} has shape {shape}; expected (N, C, H, W) or (N, D), nothing of it empty.")
        if sample_shape is not None and shape[1:] != sample_shape:
            raise DataError(f"{self.where} has samples of shape {shape[1:]}; expected x_source's, {sample_shape}.")
        turned = self.fortran and prod(shape) > 1
        with store.write(prod(shape) * self.dtype.itemsize, None if turned else self.in_place) as writer:
            if turned and writer.memory is None:
                raise NoRoomError(
                    f"{self.where} is in Fortran order and larger than the memory for data; "
                    "expected C order, as np.ascontiguousarray gives it."
                )
            for piece in self._pieces():
                self._check_finite(piece)
                writer.write(piece)
            if turned:
                assert writer.memory is not None
                array = writer.memory.view(self.dtype).reshape(shape[::-1]).T
                return Part(shape[0], self.dtype, array)
            return writer.part(shape, self.dtype)

    def labels(self, size: int) -> Labels:
        """Read the labels of so many samples.

        Raises:
            DataError: not as many, no integers, or one below 0 or far too high.
        """
        if self.dtype.kind not in "iu":
            raise DataError(f"{self.where} has dtype {self.dtype}; expected integers.")
        if self.shape != (size,):
            raise DataError(f"{self.where} has shape {self.shape}; expected ({size},), one label for each sample.")
        found = []
        for piece in self._pieces():
            y = piece.view(self.dtype)
            if y.min() < 0 or y.max() > _LARGEST_LABEL:
                wrong = y.min() if y.min() < 0 else y.max()
                raise DataError(f"{self.where} holds the label {wrong}; expected labels from 0 to {_LARGEST_LABEL}.")
            found.append(y.astype(np.int64))
        return np.concatenate(found)

    def _pieces(self) -> Any:
        """Yield all bytes, in pieces of whole numbers; an archive checks their checksum at the last one."""
        left = prod(self.shape) * self.dtype.itemsize
        largest = PIECE // self.dtype.itemsize * self.dtype.itemsize
        while left:
            data = _read_exactly(self.stream, min(left, largest))
            yield np.frombuffer(data, np.uint8)
            left -= len(data)
        if self.stream.read(1):
            raise ValueError("more bytes than the header says")

    def _check_finite(self, piece: Any) -> None:
        if self.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            x = piece.view(self.dtype).astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{self.where} holds NaN or infinite numbers; expected finite ones (float32).")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Let NumPy read the header, out of no more bytes than a header may have."""
    head = _read_exactly(stream, npy.MAGIC_LEN)
    version = npy.read_magic(BytesIO(head))
    if version not in ((1, 0), (2, 0)):  # later ones are for names of fields, which plain numbers do not have
        raise ValueError(f"version {version}")
    length = _read_exactly(stream, 2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes")
    text = BytesIO(length + _read_exactly(stream, size))
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 2's way to write integers, which a shape may well have
        shape, fortran, dtype = read(text, _LARGEST_HEADER)
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype, npy.MAGIC_LEN + len(length) + size


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
