"""Drain a worker's Ray node when AWS announces that it will reclaim the spot machine.

It runs on each worker next to Ray and is started by `ray_cluster.yaml`::

    python drain_on_notice.py --address HEAD:6379

AWS announces the end of a spot machine two minutes ahead. A drained node gets no new work, and its
running work learns that it has to leave: a training writes a checkpoint and continues elsewhere.
This file imports only the standard library, because it is copied to the nodes alone.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

METADATA = "http://169.254.169.254"
NOTICE_S = 120
"""Seconds between the notice and the end, if the notice does not give a time."""


def read_notice(metadata: str) -> dict[str, str] | None:
    """The notice, such as `{"action": "terminate", "time": "2026-11-29T17:00:00Z"}`, or None.

    If the metadata service does not answer, this counts as no notice, and the next call asks again.
    Hibernation and a stop end Ray just as termination does.
    """
    try:
        ask = urllib.request.Request(  # noqa: S310, the address is the machine's own metadata
            f"{metadata}/latest/api/token",
            method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
        )
        with urllib.request.urlopen(ask, timeout=2) as answer:  # noqa: S310
            token = answer.read().decode()
        look = urllib.request.Request(  # noqa: S310
            f"{metadata}/latest/meta-data/spot/instance-action",
            headers={"X-aws-ec2-metadata-token": token},
        )
        with urllib.request.urlopen(look, timeout=2) as answer:  # noqa: S310
            notice = json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError):  # 404 means that there is no notice
        return None
    return notice if isinstance(notice, dict) else None


def seconds_left(notice: dict[str, str], now: datetime.datetime) -> int:
    """Seconds from `now` until the machine ends, at least 1; `NOTICE_S` if no time is given."""
    try:
        end = datetime.datetime.fromisoformat(str(notice["time"]))
        return max(1, int((end - now).total_seconds()))
    except (KeyError, ValueError, TypeError):
        return NOTICE_S


def drain(address: str, node_id: str | None, left_s: int, action: str) -> bool:
    """Ask Ray to drain this machine's node, or the given one. True if Ray accepted the request."""
    ray = Path(sys.executable).with_name("ray")
    node = ["--node-id", node_id] if node_id else []
    command = [
        *(str(ray), "drain-node", "--address", address, *node),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", f"AWS reclaims this spot machine ({action})"),
        *("--deadline-remaining-seconds", str(left_s)),
    ]
    # Without a node's id, Ray uses the node that it finds on this machine.
    return not subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}).returncode


def wait_for_notice(metadata: str, every_s: float) -> dict[str, str]:
    """Wait for a notice and return it."""
    while (notice := read_notice(metadata)) is None:
        time.sleep(every_s)
    return notice


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--address", required=True, help="the head's, as HOST:6379")
    parser.add_argument("--node-id", help="which Ray node to drain; default: this machine's")
    parser.add_argument("--metadata", default=METADATA, help="the machine's metadata service")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two checks")
    arguments = parser.parse_args(argv)
    notice = wait_for_notice(arguments.metadata, arguments.every_s)
    action = str(notice.get("action", "terminate"))
    end = time.monotonic() + seconds_left(notice, datetime.datetime.now(datetime.UTC))
    while (left_s := math.ceil(end - time.monotonic())) > 0:
        print(f"notice: {action} in {left_s} s; draining this node", flush=True)
        if drain(arguments.address, arguments.node_id, left_s, action):
            return 0
        time.sleep(min(arguments.every_s, left_s))
    return 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
