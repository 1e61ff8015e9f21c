"""Whether a Ray cluster can be joined, asked before Ray is: `ray.init` waits for minutes.

On the driver only.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from typing import Any

from cluster.errors import InputError

CONNECT_S = 15.0
"""How long a head node may take to listen; a job is submitted to one that does already."""


def check_cluster(address: str, connect_s: float = CONNECT_S) -> None:
    """Raises `InputError` within a minute when no Ray answers at the address, which is `auto` or
    host:port, or when one of another version does."""
    if address.startswith("ray://"):
        raise InputError(
            f"cluster.address {address}: a run needs the cluster itself; submit it as a job with "
            "`ray job submit`, or give the head node's host:port"
        )
    found = _find(address)
    _connect(found, connect_s)
    metadata = _metadata(found)
    if metadata:
        refuse_other_version(found, metadata)


def _find(address: str) -> str:
    """The host:port that is meant."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die(address))
    except (ConnectionError, ValueError, OSError) as error:
        raise InputError(
            f"{_said(address)}: no Ray is found ({_first_line(error)}); start one with `ray start "
            "--head`, or give its host:port, or leave the address out to start one here"
        ) from error


def _connect(address: str, connect_s: float) -> None:
    host, _, port = address.rpartition(":")
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
                f"{_said(address)}: Ray cannot be reached ({_first_line(error)}); start it, or "
                "correct the address"
            ) from error
        return


def _metadata(address: str) -> dict[str, Any]:
    """What the cluster tells of itself; empty where it tells nothing."""
    import ray._common.usage.usage_lib as usage_lib
    from ray._raylet import GcsClient
    from ray.exceptions import RayError

    try:
        return dict(usage_lib.get_cluster_metadata(GcsClient(address=address)) or {})
    except (RayError, RuntimeError) as error:
        raise InputError(
            f"{_said(address)}: what listens there is no Ray that answers ({_first_line(error)}); "
            "correct the address, and the token where the cluster asks for one"
        ) from error


def refuse_other_version(address: str, metadata: dict[str, Any]) -> None:
    """Raises `InputError` where the cluster's Ray or Python is another one than this process's."""
    import ray
    from ray._private.utils import check_version_info

    try:
        check_version_info(metadata, "the driver")
    except RuntimeError:
        there = f"Ray {metadata['ray_version']} on Python {metadata['python_version']}"
        here = f"Ray {ray.__version__} on Python {platform.python_version()}"
        raise InputError(
            f"{_said(address)}: the cluster has {there}, and this process {here}; install the "
            "same on both"
        ) from None


def _said(address: str) -> str:
    """The address as the user knows it."""
    by = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "cluster.address"
    return f"{by} {address}"


def _first_line(error: BaseException) -> str:
    """The first sentence; Ray's errors go on at length."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".")
