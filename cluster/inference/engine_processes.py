"""Processes that must have ended before the next step takes their processors or GPUs.

`wait_until_gone` runs on the driver. On each node that had a worker it starts a task without CPUs,
which waits for the worker's processes and kills those that outlive it. Only process ids are sent.

Each engine also has a reaper: this file, run as a program, ends the processes of an engine whose
worker was killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

GRACE_S = 30.0
WATCH_EVERY_S = 1.0
REAPER_GRACE_S = 5.0
CLOCK_S = 1.0
"""The precision, in seconds, with which the start of a process is known."""


def child_processes() -> list[int]:
    """The ids of all descendants of this process."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


def end_processes(listed: Sequence[tuple[int, float]], grace_s: float) -> list[int]:
    """Wait until the processes have ended; after `grace_s` seconds kill those that are left.

    `listed` are ids, each with the time at which its process was seen. A process that started
    later is a different one that got the id again. Returns the ids of the killed processes. Ray
    reuses idle worker processes for other work, so these are left alone as well.
    """
    processes = []
    for pid, known_at in listed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            is_another = process.create_time() > known_at + CLOCK_S
            if not is_another and not process.name().startswith("ray::IDLE"):
                processes.append(process)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)
    return [process.pid for process in alive]


def wait_until_gone(workers: Sequence[dict[str, Any]], grace_s: float = GRACE_S) -> None:
    """Wait, on every node, until the workers `{node_id, pids, listed_at}` and their children have
    ended.

    After `grace_s` seconds the remaining ones are killed, and their ids are printed. The processes
    of a node that is lost in the meantime are gone as well.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.terminal import say  # here, since `start_reaper` runs this file by itself

    by_node: dict[str, list[tuple[int, float]]] = {}
    for worker in workers:
        listed = [(pid, worker["listed_at"]) for pid in worker["pids"]]
        by_node.setdefault(worker["node_id"], []).extend(listed)
    end = ray.remote(num_cpus=0)(end_processes)
    alive_nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    waits = [
        end.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            listed, grace_s
        )
        for node_id, listed in by_node.items()
        if node_id in alive_nodes
    ]
    for wait in waits:
        killed = []
        with contextlib.suppress(ray.exceptions.RayError):
            killed = ray.get(wait)
        if killed:
            say(f"engine processes {killed} did not end by themselves and were killed")


def start_reaper() -> subprocess.Popen[bytes]:
    """Start a process that ends all other children of this one soon after this one has ended.

    It is for a process that may be killed (by its user, or for lack of memory) while its children
    would continue and keep their GPU. Terminate it when there are no such children any more.
    """
    return subprocess.Popen(
        # It is started as a file and not as a module, so that the package need not be importable.
        [sys.executable, "-P", __file__, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def reap(parent_pid: int) -> None:
    """Wait until `parent_pid`, the parent of this process, has ended; then end its other children.

    A child that was started in the parent's last second may be missed.
    """
    children: list[psutil.Process] = []
    while os.getppid() == parent_pid:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(parent_pid).children(recursive=True)
        time.sleep(WATCH_EVERY_S)
    orphans = [process for process in children if process.pid != os.getpid()]
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(orphans, timeout=REAPER_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    reap(int(sys.argv[1]))
