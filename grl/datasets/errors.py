"""Errors about data that cannot be used, and the choice between stopping there and skipping it."""

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
"""What can be done about a shard or an image that cannot be used."""


class DataError(GrlError, ValueError):
    """The data cannot be used. The message is one sentence: the problem, and what is expected."""


class NoRoomError(DataError):
    """Memory or disk is too small for the data. The data may be good, so this is never a reason to skip any."""


class BadData:
    """Decides what happens at a shard or an image that cannot be used: stop, or skip it and count it.

    Args:
        policy: one of `ON_BAD_DATA`.

    Raises:
        ValueError: another policy.

    Example:
        >>> bad = BadData("skip")
        >>> bad.handle(DataError("source-3.npz: truncated."))
        >>> bad.skipped
        ['source-3.npz: truncated.']
    """

    def __init__(self, policy: str) -> None:
        if policy not in ON_BAD_DATA:
            raise ValueError(f"policy: got {policy!r}; expected 'stop' or 'skip'.")
        self.stops = policy == "stop"
        self.skipped: list[str] = []

    def handle(self, error: DataError) -> None:
        """Raise the error, or record it as skipped.

        Raises:
            DataError: the policy is to stop, or there is no room.
        """
        if self.stops or isinstance(error, NoRoomError):
            raise error
        self.skipped.append(str(error))


@contextmanager
def reading(name: str, expected: str) -> Iterator[None]:
    """Turn the errors of a reader into a `DataError` of one sentence that names the file. A pipe is refused.

    Args:
        name: the file.
        expected: the kind of file that is expected, in words.

    Raises:
        DataError: the block cannot read the file.

    Example:
        >>> with reading("mine.npz", ".npz archive"):
        ...     open("mine.npz")
        Traceback (most recent call last):
        grl.datasets.errors.DataError: mine.npz: cannot be read: No such file or directory.
    """
    try:
        mode = S_IFREG
        with suppress(ValueError):  # a NUL in the name: opening the file reports it
            mode = os.stat(name).st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):  # opening a pipe would wait until somebody writes to it
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


# The exceptions that zipfile, NumPy (whose headers are Python expressions) and Pillow were seen to raise on damaged
# files.
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
