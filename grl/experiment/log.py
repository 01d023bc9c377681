"""The history of a run while it runs: metrics.jsonl, line by line, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from grl.experiment.config import ConfigError
from grl.files import replacing
from grl.weights_file import CheckpointError

__all__ = ["NAME", "Log", "read_log"]

NAME = "metrics.jsonl"
_KEYS = ("step", "label_loss", "domain_loss", "coeff")

Record = dict[str, Any]


class Log:
    """The records of a run, in memory and, if there is a directory, in files that whole lines are appended to.

    A record is the step's number, its two losses before the update, None where they are not finite, and λ.

    Args:
        out: the run's directory, or None. A metrics.jsonl that is there is replaced.
        records: what a run that goes on has logged before.
        tensorboard: write event files too.

    Raises:
        ConfigError: the file cannot be written.
        ImportError: there is to be an event file, and tensorboard is not installed.
    """

    def __init__(
        self, out: str | os.PathLike[str] | None = None, records: Sequence[Record] = (), tensorboard: bool = False
    ) -> None:
        self.records = list(records)
        self._digest = sha256()
        self._path = None if out is None else Path(out) / NAME
        self._events = None
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
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
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
        """Append records; once this returns, other processes see them, and they outlive this one.

        Raises:
            ConfigError: the disk is full; metrics.jsonl ends with a whole line.
        """
        if not records:
            return
        self.records += records
        if self._path is None:
            return
        lines = _lines(records)
        size = os.fstat(self._descriptor).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._descriptor, left) :]
            if self._events is not None:
                self._events.append(records)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise self._refusal(error) from error
        self._digest.update(lines)

    def sync(self) -> None:
        """Have metrics.jsonl outlive the machine too."""
        if self._path is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written: {error.strerror}.")


def read_log(folder: Path, count: int, digest: str) -> list[Record]:
    """Return the first records of a metrics.jsonl.

    Args:
        folder: the run's directory.
        count: how many; those after them were logged after the checkpoint.
        digest: their lines' SHA-256.

    Raises:
        CheckpointError: they are not there, or were changed.
    """
    path = folder / NAME
    try:
        with open(path, "rb") as file:
            lines = [line for line, _ in zip(file, range(count), strict=False)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(lines) < count:
        raise CheckpointError(f"{path}: has {len(lines)} lines; the checkpoint was written after {count}.")
    if sha256(b"".join(lines)).hexdigest() != digest:
        raise CheckpointError(f"{path}: was changed after it was written: its SHA-256 is another.")
    try:
        records = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no JSON in each line.") from error
    if not all(map(_is_record, records)):
        raise CheckpointError(f"{path}: holds something else than {', '.join(_KEYS)} in a line.")
    return records


def _lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or tuple(record) != _KEYS or type(record["step"]) is not int:
        return False
    losses = (record["label_loss"], record["domain_loss"])
    return type(record["coeff"]) is float and all(loss is None or type(loss) is float for loss in losses)
