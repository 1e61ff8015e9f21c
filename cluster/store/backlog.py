"""Rows that wait to be written: in memory up to a bound, beyond it in a file of the node's disk.

While a store is away, the engines continue, and what they finish waits here. The file has no name:
the system removes it when its process ends.
"""

from __future__ import annotations

import pickle
import tempfile
from typing import Any

from cluster.errors import StorageError

MEMORY_BYTES = 64 * 2**20
"""Of each chunk that a worker is at."""


class Backlog:
    """A queue of values. Not shared between threads."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._begin()

    def _begin(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(self._memory_bytes)  # noqa: SIM115, kept open
        self._num = self._read_to = 0

    @property
    def is_on_disk(self) -> bool:
        """Whether it grew beyond its bound since it was empty."""
        return bool(getattr(self._file, "_rolled", False))

    def __len__(self) -> int:
        return self._num

    def add(self, value: Any) -> None:
        """Put a value at the end. Raises `StorageError` when the disk has no room for it."""
        try:
            self._file.seek(0, 2)
            pickle.dump(value, self._file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise StorageError(
                f"rows that wait for the storage do not fit on the disk at {tempfile.gettempdir()} "
                f"({error.strerror or error}); free some space, or set TMPDIR, and give the same "
                "command again"
            ) from error
        self._num += 1

    def take(self, most: int) -> list[Any]:
        """Take values from the front; an empty list when there are none."""
        self._file.seek(self._read_to)
        count = min(most, self._num)
        taken = [pickle.load(self._file) for _ in range(count)]  # noqa: S301, written above
        self._read_to = self._file.tell()
        self._num -= count
        if not self._num and self._read_to:
            self._file.close()
            self._begin()
        return taken
