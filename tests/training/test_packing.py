"""Packed rows against padded ones, on models of several families with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import InputError
from training.answers import answer_loss
from training.data.batches import Example, collate, pack
from training.packing import NAME, packed_attention, refuse_leak, use_packed_attention

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}

EXAMPLES = [
    Example("a", [1, 5, 6, 7], [8, 9, 2]),
    Example("b", [1], [30, 31, 32, 33, 34, 35, 36, 2], weight=0.25),
    Example("c", [1, 11, 12], [13], weight=2.0),
]


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def _mistral_with_a_window() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=3))


def _qwen() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))


FAMILIES = [_llama, _mistral_with_a_window, _qwen]


def _model(make: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(0)
    return make()


def _gradient(model: Any, loss: Any) -> Any:
    import torch

    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("make", FAMILIES)
def test_packed_loss_and_gradient_equal_padded_ones(make: Callable[[], Any]) -> None:
    model = _model(make)
    padded = answer_loss(model, collate(EXAMPLES, 0), "cpu")
    expected = _gradient(model, padded)
    use_packed_attention(model)
    packed = answer_loss(model, pack(EXAMPLES, 0), "cpu")
    gradient = _gradient(model, packed)
    assert packed.item() == pytest.approx(padded.item(), rel=1e-5)
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_packed_loss_is_the_weighted_sum_over_examples_alone() -> None:
    import torch

    model = _model(_llama)
    alone = []
    for example in EXAMPLES:
        tokens = torch.tensor([*example.prompt, *example.target])
        logits = model(tokens[None]).logits[0, len(example.prompt) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(example.target), reduction="sum"
        )
        alone.append(example.weight * losses.item())
    use_packed_attention(model)
    assert answer_loss(model, pack(EXAMPLES, 0), "cpu").item() == pytest.approx(
        sum(alone), rel=1e-5
    )


@pytest.mark.parametrize("make", FAMILIES)
def test_refuse_leak_of_packed_attention_passes(make: Callable[[], Any]) -> None:
    model = _model(make)
    use_packed_attention(model)
    refuse_leak(model, 256, "cpu")


class _Leaky:
    """A model that is told of one long example where there are two."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.eval, self.train = model.eval, model.train
        self.modules, self.named_parameters = model.modules, model.named_parameters

    def __call__(self, **inputs: Any) -> Any:
        ends = inputs["cu_seq_lens_q"]
        return self._model(**inputs | {"cu_seq_lens_q": ends[[0, -1]]})


def test_refuse_leak_of_a_model_that_looks_across_is_refused() -> None:
    model = _model(_llama)
    use_packed_attention(model)
    with pytest.raises(InputError, match="see each other in this model"):
        refuse_leak(_Leaky(model), 256, "cpu")


def _lfm2() -> Any:
    """Two layers of attention, with a convolution of three tokens between them."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    types = ["full_attention", "conv", "full_attention"]
    shape = SHAPE | {"num_hidden_layers": 3, "initializer_range": 0.02}
    return Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=types))


def test_refuse_leak_of_a_small_convolution_is_refused() -> None:
    model = _model(_lfm2)
    use_packed_attention(model)
    with pytest.raises(InputError, match="see each other in this model"):
        refuse_leak(model, 256, "cpu")


def _mixture_of_experts() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **sizes, head_dim=16))


def test_refuse_leak_of_experts_passes_and_still_finds_a_leak() -> None:
    model = _model(_mixture_of_experts)
    use_packed_attention(model)
    refuse_leak(model, 256, "cpu")
    with pytest.raises(InputError, match="see each other in this model"):
        refuse_leak(_Leaky(model), 256, "cpu")


def test_packed_attention_of_soft_caps_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = _model(lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16)))
    use_packed_attention(model)
    with pytest.raises(InputError, match="soft caps"):
        answer_loss(model, pack(EXAMPLES, 0), "cpu")


def test_packed_attention_is_not_written_into_the_config() -> None:
    model = _model(_llama)
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    assert NAME not in model.config.to_json_string()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
def test_packed_attention_by_the_kernel_equals_one_by_one(window: int | None) -> None:
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    states = [
        torch.randn(1, heads, 700, 64, device="cuda", generator=generator) for heads in (8, 2, 2)
    ]
    ends = torch.tensor([0, 300, 301, 700], dtype=torch.int32, device="cuda")
    others: dict[str, Any] = {"cu_seq_lens_q": ends, "max_length_q": 399, "sliding_window": window}
    query, key, value = states
    exact, _ = packed_attention(None, query, key, value, None, **others)
    query, key, value = (state.bfloat16() for state in states)
    half, _ = packed_attention(None, query, key, value, None, **others)
    assert (half.float() - exact).abs().max() < 0.03
