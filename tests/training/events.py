"""Reads TensorBoard files as TensorBoard does."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The values of each name by step, later processes over earlier ones."""
    from tensorboardX.proto.event_pb2 import SessionLog

    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        for event in _events(file):
            if event.session_log.status == SessionLog.START:
                for steps in scalars.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def _events(file: Path) -> Iterator[Any]:
    """A file is records of a length, its checksum, an event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        yield Event.FromString(data[start + 12 : start + 12 + length])
        start += length + 16
