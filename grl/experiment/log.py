"""The history of a running experiment: metrics.jsonl, line by line, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from grl.experiment.config import ConfigError
from grl.experiment.files import HISTORY
from grl.experiment.record import Record
from grl.files import replacing

if TYPE_CHECKING:
    from grl.experiment.events import EventFile

__all__ = ["Log"]


class Log:
    """The records of a run, in memory and, if there is a directory, in files that grow by complete lines.

    Args:
        out: the run's directory, or None. The log replaces an existing metrics.jsonl.
        records: the records that a resumed run has logged before.
        tensorboard: whether to write event files too.

    Raises:
        ConfigError: a file cannot be written.
        ImportError: an event file is requested, and tensorboard is not installed.
    """

    def __init__(
        self, out: str | os.PathLike[str] | None = None, records: Sequence[Record] = (), tensorboard: bool = False
    ) -> None:
        self.records = list(records)
        self._digest = sha256()
        self._path = None if out is None else Path(out) / HISTORY
        self._events: EventFile | None = None
        if self._path is None:
            return
        lines = _lines(self.records)
        self._digest.update(lines)
        try:
            with replacing(self._path) as temporary:
                temporary.write_bytes(lines)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            if tensorboard:
                from grl.experiment.events import EventFile

                self._events = EventFile(self._path.parent, self.records[-1]["step"] if self.records else 0)
        except OSError as error:
            raise self._refusal(error) from error

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            os.close(self._descriptor)
        if self._events is not None:
            self._events.close()

    @property
    def digest(self) -> str:
        """The SHA-256 of metrics.jsonl."""
        return self._digest.hexdigest()

    def append(self, records: Sequence[Record]) -> None:
        """Append records. Once this returns, other processes see them, and they outlive this process.

        Raises:
            ConfigError: the disk is full. metrics.jsonl then still ends with a complete line.
        """
        if not records:
            return
        self.records += records
        if self._path is None:
            return
        lines = _lines(records)
        size = os.fstat(self._descriptor).st_size
        try:
            remaining = memoryview(lines)
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]
            if self._events is not None:
                self._events.append(records)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise self._refusal(error) from error
        self._digest.update(lines)

    def sync(self) -> None:
        """Put metrics.jsonl on the disk, so that it outlives the machine.

        Raises:
            ConfigError: the disk fails.
        """
        if self._path is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written: {error.strerror}.")


def _lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
