"""A card for training workers that hold Ray's logical GPUs: they compute on the CPU over gloo.

Set `training.device.PRETENDED` to `DEVICE_NAME` in the environment of the driver; the workers get
it with their own.
"""

from __future__ import annotations

from cluster.planner import GIB
from training.device import CPU, PRETENDED, Device

DEVICE_NAME = "tests.training.logical_gpu:DEVICE"

DEVICE = Device("cpu", "gloo", {**CPU.environment, PRETENDED: DEVICE_NAME}, memory=80 * GIB)
"""With the memory of an A100, so that the checks count as they do on a card."""
