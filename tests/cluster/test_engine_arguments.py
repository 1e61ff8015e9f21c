"""Every shipped config resolves, or is refused by a sentence with numbers, on every card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.inference.engine import EngineSettings
from cluster.inference.vllm_engine import engine_arguments
from tests.cluster.engine_arguments import table

TABLE = Path(__file__).with_name("engine_arguments.txt")


def test_arguments_of_every_config_on_every_card_are_those_of_the_committed_table() -> None:
    """`python -m tests.cluster.engine_arguments` writes the table again."""
    assert table().splitlines() == TABLE.read_text().splitlines()


def test_every_refusal_names_hardware_that_would_do() -> None:
    refusals = [line for line in TABLE.read_text().splitlines() if "REFUSED" in line]
    assert refusals
    for line in refusals:
        assert re.search(r"use .* or more GPUs of this size|it would fit ", line), line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_num_seqs": 256}, None),
        ({"max_num_seqs": 512}, None),
        ({"max_num_seqs": 1024}, 4096),
        ({"max_num_seqs": 2048}, 8192),
        ({"max_num_seqs": 1024, "options": {"enable_chunked_prefill": False}}, None),
        ({"max_num_seqs": 1024, "use_gpu": False}, None),
        ({"max_num_seqs": 8, "use_gpu": False, "max_model_len": 512}, 4096),
        ({"max_num_seqs": 8, "use_gpu": False, "max_model_len": 8192}, 8192),
    ],
)
def test_batched_tokens_grow_with_a_batch_that_vllms_own_number_would_hold_up(
    changes: dict[str, object], expected: int | None
) -> None:
    settings = EngineSettings.model_validate(changes)
    assert engine_arguments("model", settings).get("max_num_batched_tokens") == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"tensor_parallel_size": 4}, "mp"),
        ({"tensor_parallel_size": 1, "pipeline_parallel_size": 2}, "mp"),
        ({"tensor_parallel_size": 8, "placement_group": True}, "ray"),
        ({"tensor_parallel_size": 2, "use_gpu": False}, None),
    ],
)
def test_executor_is_ray_over_nodes_and_processes_on_one(
    changes: dict[str, object], expected: str | None
) -> None:
    settings = EngineSettings.model_validate(changes)
    assert engine_arguments("model", settings).get("distributed_executor_backend") == expected
