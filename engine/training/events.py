"""Writes the scalars of a run as TensorBoard events.

torch's SummaryWriter writes in a thread, where a full disk ends in a traceback, and never waits for the disk.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """One file of events in a folder that TensorBoard reads."""

    def __init__(self, folder: Path, start: int):
        """Begin a file; TensorBoard then drops the events of earlier files after the step `start`.

        Raises OSError, and ImportError where TensorBoard is not installed.
        """
        from tensorboard.compat.proto import event_pb2, summary_pb2  # optional
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if start:
            log = event_pb2.SessionLog
            self._add(step=start + 1, session_log=log(status=log.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step. Raises OSError."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def _add(self, **content: Any) -> None:
        self._records.write(self._event.Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()

    def sync(self) -> None:
        """Wait until the events are on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
