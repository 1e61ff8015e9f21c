"""Check that a Ray cluster can be joined, before `ray.init`, which waits for minutes.

Runs on the driver only.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from typing import Any

from cluster.errors import InputError

CONNECT_S = 15.0
"""How long to wait until a head node listens; one that a job is submitted to listens already."""


def check_cluster(address: str, connect_s: float = CONNECT_S) -> None:
    """Raise `InputError` within a minute when no Ray answers at the address, which is `auto` or
    host:port, or when its version differs."""
    if address.startswith("ray://"):
        raise InputError(
            f"cluster.address {address}: a run needs the cluster itself; submit it as a job with "
            "`ray job submit`, or give the head node's host:port"
        )
    by = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "cluster.address"
    said = f"{by} {address}"
    found = _find(address, said)
    _connect(found, said, connect_s)
    if metadata := _metadata(found, said):
        refuse_other_version(said, metadata)


def _find(address: str, said: str) -> str:
    """The host:port that the address stands for."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die(address))
    except (ConnectionError, ValueError, OSError) as error:
        raise InputError(
            f"{said}: no Ray was found ({_first_line(error)}); start one with `ray start --head`, "
            "or give its host:port, or leave the address out to start one here"
        ) from error


def _connect(found: str, said: str, connect_s: float) -> None:
    host, _, port = found.rpartition(":")
    deadline = time.monotonic() + connect_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            may_pass = isinstance(error, OSError) and not isinstance(error, socket.gaierror)
            if may_pass and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise InputError(
                f"{said}: Ray cannot be reached ({_first_line(error)}); start it, or correct the "
                "address"
            ) from error
        return


def _metadata(found: str, said: str) -> dict[str, Any]:
    """What the cluster reports about itself; empty if it reports nothing."""
    import ray._common.usage.usage_lib as usage_lib
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    try:
        return dict(usage_lib.get_cluster_metadata(GcsClient(address=found)) or {})
    except (RayError, RuntimeError) as error:
        raise InputError(
            f"{said}: what listens there does not answer as Ray does ({_first_line(error)}); "
            "correct the address, or the token if the cluster requires one"
        ) from error


def refuse_other_version(said: str, metadata: dict[str, Any]) -> None:
    """Raise `InputError` if the cluster's Ray or Python differs from that of this process.

    `said` is the address as the user wrote it.
    """
    import ray
    from ray._private.utils import check_version_info

    try:
        check_version_info(metadata, "the driver")
    except RuntimeError:
        there = f"Ray {metadata['ray_version']} on Python {metadata['python_version']}"
        here = f"Ray {ray.__version__} on Python {platform.python_version()}"
        raise InputError(
            f"{said}: the cluster has {there}, but this process has {here}; install the same"
        ) from None


def _first_line(error: BaseException) -> str:
    """The first sentence of an error; Ray's errors are long."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".")
