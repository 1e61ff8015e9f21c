"""A simulated GPU: the queries of vLLM before it uses a card, answered from a table.

`VLLM_PRETENDED_CARD` names the card and `VLLM_PRETENDED_COUNT` how many there are on the node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability


@dataclass(frozen=True)
class Card:
    """What CUDA says of a card."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


CARDS = {
    "H200": Card("NVIDIA H200", 139.8, (9, 0)),
    "H100": Card("NVIDIA H100 80GB HBM3", 79.1, (9, 0)),
    "A100-80": Card("NVIDIA A100-SXM4-80GB", 79.1, (8, 0)),
    "A100-40": Card("NVIDIA A100-SXM4-40GB", 39.4, (8, 0)),
    "L40S": Card("NVIDIA L40S", 44.4, (8, 9)),
    "B200": Card("NVIDIA B200", 178.0, (10, 0)),
}


def card() -> Card:
    """The card that is pretended."""
    return CARDS[os.environ["VLLM_PRETENDED_CARD"]]


class PretendedPlatform(NonNvmlCudaPlatform):  # type: ignore[misc]
    """vLLM's platform of CUDA cards, with the answers of the table."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(*card().capability)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return card().name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return int(card().memory_gib * 2**30)

    @classmethod
    def device_count(cls) -> int:
        return int(os.environ["VLLM_PRETENDED_COUNT"])

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return 132

    @classmethod
    def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
        return True
