"""What takes a machine away says so some time before: by a SIGTERM, or by draining its Ray node.

On a worker: its main thread, which Ray's task loop owns, takes the signal; the training thread asks
after each step whether one came, and whether Ray drains one of the training's nodes, as it does
before a spot machine is taken back. Then all workers make a checkpoint and end (`training.loop`),
and the driver starts them again from it (`training.fine_tune`), on nodes that stay.
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
    """Whether this process was sent a SIGTERM that `catch_sigterm` waited for, or one of the nodes
    is drained. Every worker must ask: of the nodes Ray Train tells all of them the same."""
    import ray.train

    return ray.train.get_preemption_info() is not None or _told.is_set()
