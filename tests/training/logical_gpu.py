"""A card for training workers that hold Ray's logical GPUs: they compute on the CPU over gloo.

Set `training.device.PRETENDED` to `DEVICE_NAME` in the environment of the driver; the workers get
it with their own. With `LOGGED_NAME` each worker also writes down which GPUs it holds, in the file
that `TRAINER_LOG` of the environment names.
"""

from __future__ import annotations

import os

from cluster.inference.gpu_plan import GIB
from tests.scripted import Started
from training.device import CPU, PRETENDED, Device

DEVICE_NAME = "tests.training.logical_gpu:DEVICE"

DEVICE = Device("cpu", "gloo", {**CPU.environment, PRETENDED: DEVICE_NAME}, memory=80 * GIB)
"""With the memory of an A100, so that the checks count as they do on a card."""

LOGGED_NAME = "tests.training.logical_gpu:LOGGED"
TRAINER_LOG = "REGENESIS_TEST_TRAINER_LOG"


class LoggedDevice(Device):
    """Notes the worker that selects it, as the scripted engine notes an engine."""

    def select(self) -> None:
        Started.here("trainer").append_to(os.environ[TRAINER_LOG])


LOGGED = LoggedDevice(
    "cpu",
    "gloo",
    {**CPU.environment, PRETENDED: LOGGED_NAME, TRAINER_LOG: os.environ.get(TRAINER_LOG, "")},
    memory=80 * GIB,
)
