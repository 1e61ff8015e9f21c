"""What nodes report about their cards, with a management library that answers from a table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.thirdparty import pynvml

from cluster.cpu_dtype import this_processor_dtype
from tests.training.logical_gpu import DEVICE
from training import nodes
from training.nodes import _find_cards, _look, _node


def _node_with(cards: Any, gpus: int = 4) -> Any:
    ray_node = {"Resources": {"CPU": 16.0, "GPU": float(gpus)}, "NodeManagerAddress": "10.0.0.7"}
    return _node(ray_node, nodes._Found(2.0**40, "float32", cards))


def _library(monkeypatch: pytest.MonkeyPatch, cards: list[tuple[int, tuple[int, int]]]) -> None:
    """NVIDIA's library on a node with cards of these bytes and compute capabilities."""
    monkeypatch.setattr(nodes, "version", lambda package: "2.13.0")
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=cards[card][0]),
        "nvmlDeviceGetCudaComputeCapability": lambda card: cards[card][1],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.parametrize(
    ("cards", "memory", "dtype"),
    [
        ([(80 * 2**30, (9, 0))] * 2, 80 * 2**30, "bfloat16"),
        ([(24 * 2**30, (8, 6)), (80 * 2**30, (8, 0))], 24 * 2**30, "bfloat16"),
        ([(16 * 2**30, (7, 5))], 16 * 2**30, "float32"),
        ([(16 * 2**30, (7, 0)), (80 * 2**30, (8, 0))], 16 * 2**30, "float32"),
    ],
)
def test_the_smallest_and_the_oldest_card_count(
    cards: list[tuple[int, tuple[int, int]]],
    memory: float,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _library(monkeypatch, cards)
    node = _node_with(_find_cards())
    assert (node.num_gpus, node.card_memory, node.card_dtype) == (4, memory, dtype)


def test_gpus_that_ray_counts_where_no_card_is_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _library(monkeypatch, [])
    assert _find_cards() is None
    node = _node_with(None)
    assert (node.num_gpus, node.has_cards) == (4, False)


def test_without_nvidias_driver_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    _library(monkeypatch, [(80 * 2**30, (9, 0))])
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert _find_cards() is None


def test_a_torch_for_cpus_alone_has_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    _library(monkeypatch, [(80 * 2**30, (9, 0))])
    assert _find_cards() is not None
    monkeypatch.setattr(nodes, "version", lambda package: "2.13.0+cpu")
    assert _find_cards() is None


def test_amds_cards_are_there_and_of_unknown_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _library(monkeypatch, [])
    monkeypatch.setattr(nodes, "AMD_DRIVER", tmp_path)
    node = _node_with(_find_cards())
    assert (node.num_gpus, node.card_memory, node.card_dtype) == (4, None, "bfloat16")


def test_look_tells_of_this_machine_and_of_a_pretended_card() -> None:
    found = _look(DEVICE)
    assert found.memory > 0
    assert found.dtype == this_processor_dtype()
    assert _node_with(found.cards).card_memory == DEVICE.memory
