"""What a training worker computes on: the one place that tells GPUs from CPUs.

The driver asks `device_of` for the backend and the environment that it starts the workers with; a
worker asks it for the card's memory, its name, and what has to be set before DeepSpeed is imported.
How many cards a worker holds is Ray's matter (`training.gpus_per_worker`).

Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.settings import PlacedTraining

PRETENDED = "REGENESIS_PRETENDED_GPU"
"""Of the environment, for tests alone: `module:name` of the `Device` that GPU workers take, so that
workers which hold Ray's logical GPUs compute without a card."""


@dataclass(frozen=True)
class Device:
    """A kind of device, and how workers on it find each other."""

    accelerator: Literal["cuda", "cpu"]
    """DeepSpeed's name for it."""
    backend: Literal["nccl", "gloo"]
    """Of torch's process group."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each worker needs before it starts."""
    memory: float | None = None
    """Bytes of a card; None asks the card itself, and on a CPU there is none."""

    @property
    def is_gpu(self) -> bool:
        """Whether tensors lie on a card: streams, pinned memory, a second kind of memory."""
        return self.accelerator == "cuda"

    def card_memory(self) -> float | None:
        """Bytes of this worker's card; None where tensors lie in the node's memory."""
        if self.memory is not None or not self.is_gpu:
            return self.memory
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)

    def card_name(self) -> str | None:
        """As the vendor calls this worker's card; None without one."""
        if not self.is_gpu:
            return None
        import torch

        return str(torch.cuda.get_device_name())

    def select(self) -> None:
        """Make the worker's card torch's current one, as collective operations expect it."""
        if not self.is_gpu:
            return
        import ray.train.torch
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())


# Else DeepSpeed looks for an accelerator by itself.
CPU = Device("cpu", "gloo", {"DS_ACCELERATOR": "cpu"})
GPU = Device("cuda", "nccl")


def device_of(settings: PlacedTraining) -> Device:
    """The device of a training's workers."""
    if settings.gpus_per_worker == 0:
        return CPU
    return pretended_device() or GPU


def pretended_device() -> Device | None:
    """What tests take for a GPU; None otherwise."""
    module, _, name = os.environ.get(PRETENDED, "").partition(":")
    return getattr(importlib.import_module(module), name) if module else None
