"""Event files for TensorBoard, in either backend: written by TensorBoard's own package, which needs no framework."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grl.experiment.files import EVENTS

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("tensorboard", "google"):
        raise
    raise ImportError(f'event files need {error.name}: pip install "grl[tensorboard]"') from error

__all__ = ["EventFile"]

_TAGS = {"label_loss": "loss/label", "domain_loss": "loss/domain", "coeff": "coefficient"}


class EventFile:
    """A new event file with the losses and λ of a run.

    Written as they come, without the queue and the thread of TensorBoard's `EventFileWriter`: an error is raised where
    it happens, and what was appended outlives the process.

    Args:
        folder: the directory that TensorBoard is given with `--logdir`.
        step: the last step of earlier files that still counts; TensorBoard then drops those after it.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"{EVENTS}{seconds}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09}"
        self._writer = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115  # `close` closes it
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records of a history, and flush."""
        for record in records:
            numbers = {tag: record[name] for name, tag in _TAGS.items() if record[name] is not None}
            values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
            self._write(step=record["step"], summary=Summary(value=values))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
