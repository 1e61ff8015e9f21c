"""The device that a training worker computes on; the only place that distinguishes GPU and CPU.

The driver gets from `device_of` the backend and the environment with which it starts the workers. A
worker gets from it the card's memory and name, and what has to be set before DeepSpeed is imported.
Ray decides how many cards a worker has (`training.gpus_per_worker`).

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
"""An environment variable for tests only: `module:name` of the `Device` that GPU workers use, so
that workers with Ray's logical GPUs compute without a card."""


@dataclass(frozen=True)
class Device:
    """A kind of device, and how workers on it communicate."""

    accelerator: Literal["cuda", "cpu"]
    """DeepSpeed's name for it."""
    backend: Literal["nccl", "gloo"]
    """The backend of torch's process group."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each worker needs before it starts."""
    memory: float | None = None
    """Bytes of a card; None asks the card itself. A CPU has none."""

    @property
    def is_gpu(self) -> bool:
        """Whether tensors are on a card, with streams, pinned memory and separate host memory."""
        return self.accelerator == "cuda"

    def card_memory(self) -> float | None:
        """Bytes of this worker's card; None if tensors are in the node's memory."""
        if self.memory is not None or not self.is_gpu:
            return self.memory
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)

    def card_name(self) -> str | None:
        """The vendor's name of this worker's card; None without one."""
        if not self.is_gpu:
            return None
        import torch

        return str(torch.cuda.get_device_name())

    def select(self) -> None:
        """Make the worker's card torch's current device, as collective operations expect."""
        if not self.is_gpu:
            return
        import ray.train.torch
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())


# Otherwise DeepSpeed looks for an accelerator itself.
CPU = Device("cpu", "gloo", {"DS_ACCELERATOR": "cpu"})
GPU = Device("cuda", "nccl")


def device_of(settings: PlacedTraining) -> Device:
    """The device of a training's workers."""
    if settings.gpus_per_worker == 0:
        return CPU
    return pretended_device() or GPU


def pretended_device() -> Device | None:
    """The device that tests use as a GPU; None otherwise."""
    module, _, name = os.environ.get(PRETENDED, "").partition(":")
    return getattr(importlib.import_module(module), name) if module else None
