"""SIGTERM at a training worker: what takes a machine away sends it some time before the kill.

On a worker: its main thread, which Ray's task loop owns, takes the signal; the training thread asks
after each step whether one came. Then all workers make a checkpoint and end (`training.loop`), and
the driver starts them again from it (`training.fine_tune`).
"""

from __future__ import annotations

import signal
import threading
from typing import Any

_told = threading.Event()


def catch_sigterm() -> None:
    """From now on the first SIGTERM is only noted; a second one does what the first would have.

    In the main thread only. Ray's task loop lets Python look for signals every 10 ms.
    """

    def note(_number: int, _frame: Any) -> None:
        _told.set()
        signal.signal(signal.SIGTERM, earlier)

    earlier = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, note)


def is_told_to_end() -> bool:
    """Whether this process was sent a SIGTERM that `catch_sigterm` waited for."""
    return _told.is_set()
