"""Event files for TensorBoard in either backend, written by TensorBoard's own package, which needs no framework."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from grl.experiment.files import EVENTS_PREFIX
from grl.experiment.record import Record

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("tensorboard", "google"):
        raise
    raise ImportError(f'event files need {error.name}: pip install "grl[tensorboard]"') from error

__all__ = ["EventFile"]


class EventFile:
    """A new event file with the losses and λ of a run.

    Events are written at once, without the queue and the thread of TensorBoard's `EventFileWriter`. An error is
    therefore raised by the call that causes it, and appended records outlive the process.

    Args:
        folder: the directory that TensorBoard reads (`--logdir`).
        step: the last step of earlier files that still counts. TensorBoard then drops the steps after it.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"{EVENTS_PREFIX}{seconds}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09}"
        self._writer = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115  # `close` closes it
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=step + 1, session_log=restart))
        self._writer.flush()

    def append(self, records: Sequence[Record]) -> None:
        """Write records of a history, and flush."""
        for record in records:
            numbers = {
                "loss/label": record["label_loss"],
                "loss/domain": record["domain_loss"],
                "coefficient": record["coeff"],
            }
            values = [
                Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items() if number is not None
            ]
            self._write(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
