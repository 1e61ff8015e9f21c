"""React when a machine is about to be taken away: to a SIGTERM, or to a drain of its Ray node.

On a worker, the main thread, which runs Ray's task loop, receives the signal. After each step the
training thread checks whether a signal came, and whether Ray is draining one of the training's
nodes, as it does before a spot machine is reclaimed. Then all workers write a checkpoint and end
(`training.loop`), and the driver restarts them from it on the remaining nodes
(`training.fine_tune`).
"""

from __future__ import annotations

import signal
import threading
from typing import Any

_told = threading.Event()


def catch_sigterm() -> None:
    """Only record the first SIGTERM from now on; a second one has the original effect.

    Call it in the main thread. Ray's task loop lets Python handle signals every 10 ms.
    """

    def note(_number: int, _frame: Any) -> None:
        _told.set()
        signal.signal(signal.SIGTERM, earlier)

    earlier = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, note)


def is_told_to_end() -> bool:
    """Whether this process got a SIGTERM that `catch_sigterm` recorded, or one of the nodes is
    being drained. Every worker must call it; Ray Train reports the same nodes to all of them."""
    import ray.train

    return ray.train.get_preemption_info() is not None or _told.is_set()
