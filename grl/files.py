"""Files that are either whole or absent, even after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from grl.errors import GrlError

__all__ = ["WriteError", "replacing"]


class WriteError(GrlError, ValueError):
    """A file cannot be written. The message is one sentence."""


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, with the same suffix; rename it to `path` when the block ends.

    The file is synced before the rename, and its folder after it: a power cut leaves either the
    old file or the new one, whole.

    Args:
        path: the final name. An existing file stays until the new one is whole.

    Example:
        >>> import tempfile
        >>> final = Path(tempfile.mkdtemp()) / "figures.json"
        >>> with replacing(final) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> final.read_text()
        '{}'
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}{final.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, final)
        _sync(final.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
