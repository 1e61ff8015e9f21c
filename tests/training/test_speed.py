from __future__ import annotations

import pytest

from training.mfu import peak_flops, work_of


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 836e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA GeForce RTX 3090", None),
        (None, None),
    ],
)
def test_peak_flops_by_name(name: str | None, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_work_of_a_model_counts_its_products_by_hand() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # A layer: queries and output 2 x 8 x 8, keys and values 2 x 8 x 4, feed-forward 3 x 8 x 16,
    # two norms of 8; and the last norm.
    inner = 2 * (128 + 64 + 384 + 16) + 8
    work = work_of(model)
    assert work is not None
    assert work.flops(num_tokens=10, num_answer_tokens=3) == 6 * (10 * inner + 3 * 800)
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    frozen = work_of(model)
    assert frozen is not None
    assert frozen.flops(10, 3) == 4 * 10 * inner + 6 * 3 * 800


def test_work_of_experts_is_not_known() -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3MoeConfig(vocab_size=16, hidden_size=8, head_dim=4, num_experts=2, **sizes)
    with torch.device("meta"):
        assert work_of(Qwen3MoeForCausalLM(config)) is None
