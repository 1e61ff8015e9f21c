from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.inference.gpu_plan import GIB
from training.memory import (
    BatchSize,
    ModelSize,
    checkpoint_bytes,
    estimate_memory,
    explain_shortage,
)
from training.settings import PlacedTraining

# 8 billion parameters in the shape of Llama 3 8B.
LARGE = ModelSize(
    num_parameters=8_030_000_000,
    num_trained=8_030_000_000,
    largest_module=525_000_000,
    num_layers=32,
    hidden_size=4096,
    attention_size=6144,
    intermediate_size=14336,
    vocab_size=128256,
)
BATCH = BatchSize(num_tokens=2048, num_answer_tokens=1024)
BILLION = 1_000_000_000


def _settings(**fields: Any) -> PlacedTraining:
    return PlacedTraining.model_validate(
        {"num_workers": 8, "gpus_per_worker": 1, "micro_batch_size": 1} | fields
    )


@pytest.mark.parametrize(
    ("fields", "weights", "gradients", "optimizer"),
    [
        # GB, by hand: bfloat16 weights 16.06, float32 gradients 32.12, optimizer 12 x 8.03.
        ({"zero_stage": 0}, 16.06, 32.12, 96.36),
        ({"zero_stage": 1}, 16.06, 32.12, 12.045),
        ({"zero_stage": 2}, 16.06, 4.015, 12.045),
        # An eighth, the output layer whole, and what is fetched ahead.
        ({"zero_stage": 3}, 2.0075 + 1.05 + 0.1, 4.015, 12.045),
        ({"zero_stage": 3, "offload_optimizer": True}, 2.0075 + 1.15, 0.0, 0.0),
        # At stage 1 each worker holds all gradients until they are exchanged.
        ({"zero_stage": 1, "offload_optimizer": True}, 16.06, 32.12, 0.0),
        ({"zero_stage": 0, "dtype": "float32"}, 32.12, 32.12, 64.24),
    ],
)
def test_estimate_memory_of_eight_billion_parameters_on_eight_workers(
    fields: dict[str, Any], weights: float, gradients: float, optimizer: float
) -> None:
    memory = estimate_memory(LARGE, BATCH, _settings(**fields))
    assert memory.weights / BILLION == pytest.approx(weights)
    assert memory.gradients / BILLION == pytest.approx(gradients)
    assert memory.optimizer / BILLION == pytest.approx(optimizer)


@pytest.mark.parametrize(
    ("fields", "bytes_of_number"),
    [
        # Gathered twice in the weights' type, a float32 copy to exchange, the result.
        ({}, 2 + 2 + 4 + 2),
        ({"dtype": "float32"}, 4 + 4 + 4 + 4),
        ({"gpus_per_worker": 0}, 2 + 4 + 2),
    ],
)
def test_estimate_memory_counts_what_gradients_are_exchanged_in(
    fields: dict[str, Any], bytes_of_number: int
) -> None:
    memory = estimate_memory(LARGE, BATCH, _settings(**fields))
    assert memory.buffers == 500_000_000 * bytes_of_number
    small = replace(LARGE, num_trained=1_000_000)
    assert estimate_memory(small, BATCH, _settings(**fields)).buffers == 1e6 * bytes_of_number


def test_estimate_memory_counts_offloaded_gradients_once() -> None:
    memory = estimate_memory(LARGE, BATCH, _settings(zero_stage=2, offload_optimizer=True))
    assert memory.gradients == memory.optimizer == 0
    assert memory.host == 8_030_000_000 * (12 + 4) / 8


def test_checkpoint_bytes_of_eight_billion_parameters_are_112_gb() -> None:
    assert checkpoint_bytes(LARGE, _settings()) / BILLION == pytest.approx(112.42)
    adapted = replace(LARGE, num_trained=42_000_000)
    assert checkpoint_bytes(adapted, _settings()) / BILLION == pytest.approx(0.588)


def test_estimate_memory_checkpointing_keeps_one_layer_instead_of_all() -> None:
    all_layers = estimate_memory(LARGE, BATCH, _settings())
    one_layer = estimate_memory(LARGE, BATCH, _settings(gradient_checkpointing=True))
    assert all_layers.activations > 10 * one_layer.activations > 0
    assert all_layers.logits == one_layer.logits == 1024 * 128256 * 12


def test_estimate_memory_of_experts_counts_what_each_keeps_of_a_token() -> None:
    # Qwen3 30B A3B; 8 of 128 experts see a token.
    sparse = ModelSize(
        num_parameters=30_532_122_624,
        num_trained=30_532_122_624,
        largest_module=603_979_776,
        num_layers=48,
        hidden_size=2048,
        attention_size=5120,
        intermediate_size=8 * 768,
        vocab_size=151936,
        experts_per_token=8,
    )
    memory = estimate_memory(sparse, BATCH, _settings(zero_stage=3))
    # By hand, bytes of a token in a layer: norms 32768, attention 24576, the experts' four products
    # 49152, and eight times the hidden state before and after in bfloat16, 65536.
    assert memory.activations == 2048 * 48 * (32768 + 24576 + 49152 + 65536)
    # An eighth of the weights, the experts of one layer whole, and what is fetched ahead.
    assert memory.weights / BILLION == pytest.approx(7.633 + 1.208 + 0.1, abs=1e-3)


def test_estimate_memory_lora_needs_little_but_the_weights() -> None:
    adapted = replace(LARGE, num_trained=42_000_000)
    lora = estimate_memory(adapted, BATCH, _settings(method="lora"))
    assert lora.weights / BILLION == pytest.approx(16.06)
    assert lora.gradients + lora.optimizer < 0.5 * BILLION


@pytest.mark.parametrize(
    ("gib", "remedy"),
    [
        (79.1, None),
        (30.0, "with training.gradient_checkpointing: true, training.zero_stage: 3 "),
        (16.0, "training.offload_optimizer: true "),
        (11.0, "training.offload_weights: true "),
        (4.0, "; use larger workers; "),
    ],
)
def test_explain_shortage_names_the_first_change_that_helps(gib: float, remedy: str | None) -> None:
    shortage = explain_shortage(LARGE, lambda _: BATCH, _settings(), gib * GIB, 1000 * GIB)
    if remedy is None:
        assert shortage is None
    else:
        assert shortage is not None
        assert remedy in shortage
        assert f"a worker has {gib:.1f} GiB" in shortage


def test_explain_shortage_keeps_a_reserve_of_a_card() -> None:
    needed = estimate_memory(LARGE, BATCH, _settings()).device
    for there, is_enough in ((needed + 2 * GIB, False), ((needed + GIB) / 0.95 + 1, True)):
        shortage = explain_shortage(LARGE, lambda _: BATCH, _settings(), there, 1000 * GIB)
        assert (shortage is None) == is_enough


def test_explain_shortage_of_host_memory_for_what_was_moved_there() -> None:
    settings = _settings(zero_stage=3, offload_optimizer=True, gradient_checkpointing=True)
    assert explain_shortage(LARGE, lambda _: BATCH, settings, 79 * GIB, 20 * GIB) is None
    shortage = explain_shortage(LARGE, lambda _: BATCH, settings, 79 * GIB, 10 * GIB)
    assert shortage is not None
    assert "10.0 GiB of host memory" in shortage


def test_explain_shortage_what_lies_in_a_folder_takes_no_host_memory() -> None:
    settings = _settings(zero_stage=3, offload_optimizer=True, gradient_checkpointing=True)
    in_folder = settings.model_copy(update={"offload_folder": "/nvme"})
    assert explain_shortage(LARGE, lambda _: BATCH, settings, 79 * GIB, 10 * GIB) is not None
    assert explain_shortage(LARGE, lambda _: BATCH, in_folder, 79 * GIB, 10 * GIB) is None


def test_explain_shortage_without_gpus_offers_no_offload() -> None:
    settings = _settings(gpus_per_worker=0)
    shortage = explain_shortage(LARGE, lambda _: BATCH, settings, 4 * GIB, 4 * GIB)
    assert shortage is not None
    assert "offload_" not in shortage
    moved = _settings(gpus_per_worker=0, zero_stage=3, offload_optimizer=True)
    assert estimate_memory(LARGE, BATCH, moved).host == 0
