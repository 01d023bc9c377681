"""What is said about data that cannot be used, and whether the rest is gone on with."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from stat import S_IFREG, S_ISDIR, S_ISREG
from tokenize import TokenError

from grl.errors import GrlError

__all__ = ["ON_BAD_DATA", "BadData", "DataError", "NoRoomError", "reading"]


ON_BAD_DATA = ("stop", "skip")
"""What can be done with a shard or an image that cannot be used."""


class DataError(GrlError, ValueError):
    """The data cannot be used. The message is one sentence: what came, and what is expected."""


class NoRoomError(DataError):
    """There is not enough memory or disk for the data, which may be good ones: never a reason to leave some out."""


class BadData:
    """What to do with a shard or an image that cannot be used: stop there, or leave it out and count it.

    Args:
        policy: one of `ON_BAD_DATA`.

    Raises:
        ValueError: another policy.

    Example:
        >>> bad = BadData("skip")
        >>> bad.meet(DataError("source-3.npz: truncated."))
        >>> bad.skipped
        ['source-3.npz: truncated.']
    """

    def __init__(self, policy: str) -> None:
        if policy not in ON_BAD_DATA:
            raise ValueError(f"policy: got {policy!r}; expected 'stop' or 'skip'.")
        self.stops = policy == "stop"
        self.skipped: list[str] = []

    def meet(self, error: DataError) -> None:
        """Raise the error, or note it and go on."""
        if self.stops or isinstance(error, NoRoomError):
            raise error
        self.skipped.append(str(error))


@contextmanager
def reading(name: str, expected: str) -> Iterator[None]:
    """Turn what a reader raises on a bad file into a `DataError` of one sentence that names the file; refuse a pipe.

    Args:
        name: the file.
        expected: what it should have been, in words.

    Example:
        >>> with reading("mine.npz", ".npz archive"):
        ...     open("mine.npz")
        Traceback (most recent call last):
        grl.datasets.errors.DataError: mine.npz: cannot be read: No such file or directory.
    """
    try:
        mode = S_IFREG
        with suppress(ValueError):  # of a NUL in the name, which the opener refuses
            mode = os.stat(name).st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):  # to open a pipe is to wait for somebody who writes
            raise DataError(f"{name}: a pipe or a device; expected a file.")
        yield
    except DataError:
        raise
    except OSError as error:
        if error.strerror is None:
            raise DataError(f"{name}: truncated or no {expected}.") from error
        raise DataError(f"{name}: cannot be read: {error.strerror}.") from error
    except MemoryError as error:
        raise NoRoomError(f"{name}: does not fit into the memory that is left.") from error
    except _READERS_RAISE as error:
        raise DataError(f"{name}: truncated or no {expected}.") from error


# What zipfile, NumPy (whose headers are Python expressions) and Pillow have been seen to raise on damaged files.
_READERS_RAISE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    AttributeError,
    SyntaxError,
    TokenError,
)
